#include "engine/io/quantized.h"

#include "tests/engine/io/packed_support.h"

namespace ballast {
namespace {

using test::Random;

SparseOutlierMatrix outliers(int64_t out = 20, int64_t in = 64, int64_t group_size = 16, int bits = 3,
                             int stat_bits = 3) {
  Random random(uint64_t(out + in + bits + stat_bits));
  return test::random_outliers(random, bits, stat_bits, out, in, group_size, 0.1f);
}
ResidualBinaryMatrix binary(int64_t out = 20, int64_t in = 72, int64_t block_size = 32) {
  Random random(uint64_t(out + in + block_size));
  return test::random_binary(random, out, in, block_size);
}

AffineMatrix half_zeros(int bits, int64_t out = 20, int64_t in = 64, int64_t group_size = 16) {
  AffineMatrix matrix = random_matrix(bits, out, in, group_size, false);
  matrix.half_zeros = true;
  return matrix;
}

TEST(Quantized, MatricesComeBackAsWritten) {
  std::vector<QuantizedMatrix> matrices;
  for (const auto& [out, in, group] :
       {std::tuple(1, 1, 1), {64, 192, 16}, {40, 36, 9}, {7, 10, 10}, {33, 768, 128}}) {
    matrices.push_back(binary(out, in, group == 10 ? 65536 : group));
    for (int bits : {2, 3, 4}) matrices.push_back(half_zeros(bits, out, in, group));
    for (int bits : {2, 3, 4, 8})
      for (int stat_bits = 1; stat_bits <= 8; ++stat_bits)
        matrices.push_back(outliers(out, in, group, bits, stat_bits));
  }
  SparseOutlierMatrix none = outliers();
  none.outlier_columns.clear();
  none.outlier_values.clear();
  none.outlier_rows.assign(21, 0);
  matrices.push_back(none);

  const TempFolder folder;
  CheckpointWriter writer(folder / "a", {});
  for (size_t i = 0; i < matrices.size(); ++i)
    write_quantized(writer, str("m", i), matrices[i], PackedLayout::gptq_v2, false);
  const PackedConfig config{.layout = PackedLayout::ballast,
                            .bits = 3,
                            .group_size = -1,
                            .encodings = {kHalfZeros, kSparseOutliers, kResidualBinary}};
  writer.finish({{"quantization_config", packed_config_json(config)}});
  const Checkpoint checkpoint = Checkpoint::open(folder / "a");
  for (size_t i = 0; i < matrices.size(); ++i)
    ASSERT_EQ(read_quantized(checkpoint, str("m", i), out_features(matrices[i]), in_features(matrices[i])),
              matrices[i])
        << i;
}

TEST(Quantized, AffineWeightsGoThroughTheSameDoor) {
  for (PackedLayout layout : {PackedLayout::gptq_v1, PackedLayout::gptq_v2, PackedLayout::pack_quantized}) {
    const AffineMatrix matrix = random_matrix(4, 32, 64, 16, false);
    EXPECT_EQ(std::get<AffineMatrix>(Module(layout, matrix, false).read_any()), matrix);
  }
  const TempFolder folder;
  CheckpointWriter writer(folder / "a", {});
  EXPECT_EQ(write_quantized(writer, "odd", random_matrix(3, 50, 96, 32, false), PackedLayout::gptq_v2, false),
            PackedLayout::pack_quantized);
}

// What bits_per_weight() says is what the file holds, but for the words that say bits and sizes.
TEST(Quantized, FilesAreAsSmallAsBitsPerWeightSays) {
  const auto bits_in_file = [](const Module& module, const char* but) {
    double bits = 0;
    for (const auto& [name, tensor] : module.tensors)
      if (name != std::string("m.") + but) bits += 8 * double(tensor.data.size());
    return bits / double(module.out_features * module.in_features);
  };
  for (int bits : {2, 3, 4}) {
    const SparseOutlierMatrix matrix = outliers(64, 192, 16, bits);
    EXPECT_DOUBLE_EQ(bits_in_file(Module(matrix), "weight_grid"), matrix.bits_per_weight());
    const AffineMatrix halves = half_zeros(bits, 64, 192, 16);
    EXPECT_DOUBLE_EQ(bits_in_file(Module(halves), "weight_affine_grid"), halves.bits_per_weight());
  }
  const ResidualBinaryMatrix matrix = binary(64, 192, 128);
  EXPECT_DOUBLE_EQ(bits_in_file(Module(matrix), "weight_block_size"), matrix.bits_per_weight());
}

TEST(Quantized, CodesArePackedBitByBit) {
  const auto bit = [](const Module& module, const char* name, size_t first_word, size_t at) {
    return module.peek<uint32_t>(name, first_word + at / 32) >> (at % 32) & 1u;
  };
  const SparseOutlierMatrix sparse = outliers(20, 36, 12);
  const Module module(sparse);
  EXPECT_EQ(module.tensors.at("m.weight").shape, (std::vector<int64_t>{20, 4}));
  for (size_t row = 0; row < 20; ++row)
    for (size_t i = 0; i < 36 * 3; ++i)
      ASSERT_EQ(bit(module, "weight", row * 4, i), sparse.codes[row * 36 + i / 3] >> (i % 3) & 1u);
  EXPECT_EQ(module.tensors.at("m.weight_scale_codes").shape, std::vector<int64_t>{6});
  for (size_t i = 0; i < 20 * 3 * 3; ++i) {
    ASSERT_EQ(bit(module, "weight_scale_codes", 0, i), sparse.scale_codes[i / 3] >> (i % 3) & 1u);
    ASSERT_EQ(bit(module, "weight_zero_codes", 0, i), sparse.zero_codes[i / 3] >> (i % 3) & 1u);
  }
  const ResidualBinaryMatrix signs = binary();
  const Module of_signs(signs);
  for (size_t i = 0; i < 72; ++i) ASSERT_EQ(bit(of_signs, "weight_salient", 0, i), signs.salient[i]);
}

TEST(Quantized, OneFolderMayHoldEveryEncoding) {
  const TempFolder folder;
  CheckpointWriter writer(folder / "a", {});
  const SparseOutlierMatrix sparse = outliers();
  const ResidualBinaryMatrix signs = binary();
  const AffineMatrix grid = random_matrix(4, 32, 64, 16, true), other = random_matrix(3, 32, 64, 32, false);
  write_quantized(writer, "l.0", sparse, PackedLayout::gptq_v2, false);
  write_quantized(writer, "l.1", signs, PackedLayout::gptq_v2, false);
  write_quantized(writer, "l.2", grid, PackedLayout::pack_quantized, true);
  write_quantized(writer, "l.3", other, PackedLayout::gptq_v2, false);
  const PackedConfig config{.layout = PackedLayout::ballast,
                            .bits = 2,
                            .group_size = -1,
                            .encodings = {kResidualBinary, kSparseOutliers}};
  writer.finish({{"quantization_config", packed_config_json(config, {}, {"lm_head"})}});
  const Checkpoint checkpoint = Checkpoint::open(folder / "a");
  EXPECT_EQ(packed_config(checkpoint)->layout, PackedLayout::ballast);
  EXPECT_EQ(packed_config(checkpoint)->encodings, config.encodings);
  EXPECT_EQ(packed_config(checkpoint)->bits, 2);
  EXPECT_EQ(std::get<SparseOutlierMatrix>(read_quantized(checkpoint, "l.0", 20, 64)), sparse);
  EXPECT_EQ(std::get<ResidualBinaryMatrix>(read_quantized(checkpoint, "l.1", 20, 72)), signs);
  EXPECT_EQ(std::get<AffineMatrix>(read_quantized(checkpoint, "l.2", 32, 64)), grid);
  EXPECT_EQ(std::get<AffineMatrix>(read_quantized(checkpoint, "l.3", 32, 64)), other);
  for (const char* name : {"l.0", "l.1", "l.2", "l.3"}) EXPECT_TRUE(has_quantized_weight(checkpoint, name));
  EXPECT_FALSE(has_quantized_weight(checkpoint, "l.4"));
  for (const StoredTensor& tensor : checkpoint.tensors())
    EXPECT_TRUE(is_weight_part(tensor.name.substr(4))) << tensor.name;
}

// A reader that takes `weight` for floats meets the wrong type, one that knows affine layouts finds none.
TEST(Quantized, OtherReadersStop) {
  for (const Module& module : {Module(outliers()), Module(binary())})
    module.with_checkpoint([&](const Checkpoint& checkpoint) {
      EXPECT_TRUE(throws_with("expected dtype F32, F16 or BF16", [&] {
        checkpoint.weight("m.weight", {module.out_features, module.in_features});
      }));
      EXPECT_TRUE(throws_with("is missing, and so is weight_packed", [&] {
        read_packed(checkpoint, "m", module.out_features, module.in_features);
      }));
    });
}

struct Mistake {
  const char* part;
  std::function<void(Module&)> change;
};

void expect_refused(const Module& whole, std::span<const Mistake> mistakes) {
  EXPECT_NO_THROW(whole.read_any());
  for (const Mistake& mistake : mistakes) {
    Module module = whole;
    mistake.change(module);
    EXPECT_TRUE(module.fails_with(mistake.part)) << mistake.part;
  }
}

void resize(Module& module, const char* name, std::vector<int64_t> shape) {
  Module::Tensor& tensor = module.tensors.at(std::string("m.") + name);
  int64_t bytes = tensor.dtype == "I32" ? 4 : 2;
  for (int64_t size : shape) bytes *= size;
  tensor.shape = std::move(shape);
  tensor.data.resize(size_t(bytes));
}

TEST(Quantized, OutlierMistakes) {
  const Mistake mistakes[] = {
      {"\"m.weight\": expected shape [40,6], got [20,6]", [](Module& m) { m.out_features = 40; }},
      {"\"m.weight\": expected shape [20,9], got [20,6]", [](Module& m) { m.in_features = 96; }},
      {"\"m.weight\": expected shape [20,6], got [120]", [](Module& m) { resize(m, "weight", {120}); }},
      {"\"m.weight\": expected shape [20,4]", [](Module& m) { m.poke<int32_t>("weight_grid", 0, 2); }},
      {"expected codes of 2, 3, 4 or 8 bits, got 5", [](Module& m) { m.poke<int32_t>("weight_grid", 0, 5); }},
      {"expected codes of 2, 3, 4 or 8 bits, got -3",
       [](Module& m) { m.poke<int32_t>("weight_grid", 0, -3); }},
      {"expected statistics of 1 to 8 bits, got 0", [](Module& m) { m.poke<int32_t>("weight_grid", 1, 0); }},
      {"expected statistics of 1 to 8 bits, got 9", [](Module& m) { m.poke<int32_t>("weight_grid", 1, 9); }},
      {"\"m.weight_scale_codes\": expected shape [10], got [8]",
       [](Module& m) { m.poke<int32_t>("weight_grid", 1, 4); }},
      {"expected a group size that divides 64 inputs, got 0",
       [](Module& m) { m.poke<int32_t>("weight_grid", 2, 0); }},
      {"expected a group size that divides 64 inputs, got -16",
       [](Module& m) { m.poke<int32_t>("weight_grid", 2, -16); }},
      {"expected a group size that divides 64 inputs, got 128",
       [](Module& m) { m.poke<int32_t>("weight_grid", 2, 128); }},
      {"\"m.weight_scale_codes\": expected shape [4], got [8]",
       [](Module& m) { m.poke<int32_t>("weight_grid", 2, 32); }},
      {"\"m.weight_grid\": expected shape [3]", [](Module& m) { resize(m, "weight_grid", {2}); }},
      {"\"m.weight_zero_codes\": expected shape [8], got [9]",
       [](Module& m) { resize(m, "weight_zero_codes", {9}); }},
      {"\"m.weight_statistics\": expected shape [2,4,4], got [4,2,4]",
       [](Module& m) {
         resize(m, "weight_statistics", {4, 2, 4});
       }},
      {"\"m.weight_outlier_rows\": expected shape [21], got [20]",
       [](Module& m) { resize(m, "weight_outlier_rows", {20}); }},
      {"\"m.weight_outlier_columns\": expected 1 dimension, got 2",
       [](Module& m) { m.tensors["m.weight_outlier_columns"].shape.push_back(1); }},
      {"\"m.weight_outliers\": expected shape", [](Module& m) { resize(m, "weight_outliers", {3}); }},
      {"a scale, zero point or outlier is not finite",
       [](Module& m) { m.poke<uint16_t>("weight_statistics", 9, 0x7C00); }},
      {"a scale, zero point or outlier is not finite",
       [](Module& m) { m.poke<uint16_t>("weight_outliers", 9, 0x7E00); }},
      {"do not span the outliers", [](Module& m) { m.poke<int32_t>("weight_outlier_rows", 20, 1); }},
      {"row offsets descend at row 4", [](Module& m) { m.poke<int32_t>("weight_outlier_rows", 5, -1); }},
      {"row offsets descend", [](Module& m) { m.poke<int32_t>("weight_outlier_rows", 5, INT32_MAX); }},
      {"do not ascend within 64", [](Module& m) { m.poke<uint16_t>("weight_outlier_columns", 3, 64); }},
      {"is there beside", [](Module& m) { m.set<int32_t>("weight_block_size", "I32", {1}, {8}); }},
      {"is there beside", [](Module& m) { m.set<int32_t>("qweight", "I32", {1}, {8}); }},
      {"encoding sparse_outliers, which quantization_config does not announce",
       [](Module& m) { m.quantization()["encodings"] = json::array({kResidualBinary}); }},
      {"which quantization_config does not announce",
       [](Module& m) {
         m.config = config_for(PackedLayout::gptq_v2, random_matrix(4, 32, 64, 16, false), true);
       }},
      {"'version': expected 1, got 2", [](Module& m) { m.quantization()["version"] = 2; }},
      {"expected quantization_config", [](Module& m) { m.config = json::object(); }},
  };
  expect_refused(Module(outliers()), mistakes);
}

TEST(Quantized, ResidualBinaryMistakes) {
  const Mistake mistakes[] = {
      {"\"m.weight\": expected shape [40,5], got [20,5]", [](Module& m) { m.out_features = 40; }},
      {"\"m.weight\": expected shape [20,8], got [20,5]", [](Module& m) { m.in_features = 128; }},
      {"\"m.weight_salient\": expected shape [3], got [2]",
       [](Module& m) { resize(m, "weight_salient", {2}); }},
      {"\"m.weight_coefficients\": expected shape [20,3,7], got [20,3,8]",
       [](Module& m) {
         resize(m, "weight_coefficients", {20, 3, 8});
       }},
      {"\"m.weight_coefficients\": expected shape [20,2,7]",
       [](Module& m) { m.poke<int32_t>("weight_block_size", 0, 64); }},
      {"expected at least 1, got 0", [](Module& m) { m.poke<int32_t>("weight_block_size", 0, 0); }},
      {"expected at least 1, got -8", [](Module& m) { m.poke<int32_t>("weight_block_size", 0, -8); }},
      {"\"m.weight_block_size\": expected shape [1]", [](Module& m) { resize(m, "weight_block_size", {0}); }},
      {"a coefficient is not finite",
       [](Module& m) { m.poke<uint16_t>("weight_coefficients", 100, 0xFC00); }},
      {"encoding residual_binary, which quantization_config does not announce",
       [](Module& m) { m.quantization()["encodings"] = json::array(); }},
      {"is there beside", [](Module& m) { m.set<int32_t>("weight_packed", "I32", {1}, {8}); }},
  };
  expect_refused(Module(binary()), mistakes);
}

TEST(Quantized, EveryTensorMustBeThereInItsType) {
  for (const Module& whole : {Module(outliers()), Module(binary())})
    for (const auto& [name, tensor] : whole.tensors) {
      SCOPED_TRACE(name);
      const bool mark = name == "m.weight_grid" || name == "m.weight_block_size";
      Module module = whole;
      module.tensors.erase(name);
      EXPECT_TRUE(module.fails_with(mark ? "is missing, and so is" : name + "\" is missing"));
      module = whole;
      module.tensors[name].dtype = tensor.dtype == "I32" ? "F32" : "BF16";
      EXPECT_TRUE(module.fails_with(name + "\": expected dtype " + tensor.dtype));
    }
}

// Any bytes of the right length give a matrix that passes its own check, or an Error.
TEST(Quantized, DamagedBytesNeverGetThrough) {
  Random random(17);
  int64_t refused = 0;
  for (const Module& whole : {Module(outliers()), Module(binary())})
    for (int round = 0; round < 30; ++round) {
      Module module = whole;
      for (auto& [name, tensor] : module.tensors)
        for (int64_t i = random.below(3); i > 0 && !tensor.data.empty(); --i)
          tensor.data[size_t(random.below(int64_t(tensor.data.size())))] = char(random.below(256));
      try {
        std::visit([](const auto& matrix) { matrix.check("m"); }, module.read_any());
      } catch (const Error&) {
        ++refused;
      }
    }
  EXPECT_GT(refused, 5);
  EXPECT_LT(refused, 60);
}

TEST(Quantized, WritingRefusesWhatCouldNotBeRead) {
  const TempFolder folder;
  CheckpointWriter writer(folder / "a", {});
  SparseOutlierMatrix sparse = outliers();
  sparse.stats[3] = 0x7C00;
  EXPECT_TRUE(throws_with("is not finite",
                          [&] { write_quantized(writer, "m", sparse, PackedLayout::gptq_v2, false); }));
  ResidualBinaryMatrix signs = binary();
  signs.codes[3] = 4;
  EXPECT_TRUE(throws_with("code 4 exceeds 3",
                          [&] { write_quantized(writer, "m", signs, PackedLayout::gptq_v2, false); }));
}

}  // namespace
}  // namespace ballast
