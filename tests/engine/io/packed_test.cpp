#include "engine/io/packed.h"

#include "tests/engine/io/packed_support.h"

namespace ballast {
namespace {

void round_trip(PackedLayout layout, int bits, bool symmetric) {
  SCOPED_TRACE(str("layout ", int(layout), " bits ", bits, " symmetric ", symmetric));
  const TempFolder folder;
  CheckpointWriter writer(folder.path(), {});
  std::map<std::string, AffineMatrix> matrices;
  std::vector<PackedException> modules;
  for (const auto& [out_features, in_features] : {std::pair(32, 64), {96, 32}, {64, 2080}, {40, 36}, {7, 10}})
    for (int64_t group_size : {in_features, in_features / 2, 4}) {
      if (in_features % group_size != 0 || !layout_holds(layout, bits, out_features, in_features)) continue;
      const std::string name = str("m.", out_features, ".", group_size);
      matrices[name] = random_matrix(bits, out_features, in_features, group_size, symmetric);
      write_packed(writer, name, matrices[name], layout, symmetric);
      modules.push_back({name, layout, bits, group_size});
    }
  ASSERT_GE(modules.size(), 6u);
  const PackedConfig config{.layout = layout, .bits = bits, .group_size = 4, .symmetric = symmetric};
  writer.finish({{"quantization_config", packed_config_json(config, modules)}});
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  for (const auto& [name, matrix] : matrices) {
    SCOPED_TRACE(name);
    EXPECT_TRUE(has_packed_weight(checkpoint, name));
    expect_equal(read_packed(checkpoint, name, matrix.out_features, matrix.in_features), matrix);
  }
  EXPECT_FALSE(has_packed_weight(checkpoint, "m"));
}

TEST(Packed, EveryLayoutComesBackAsWritten) {
  for (PackedLayout layout : {PackedLayout::gptq_v1, PackedLayout::gptq_v2, PackedLayout::pack_quantized})
    for (int bits : {2, 3, 4, 8})
      for (bool symmetric : {false, true}) round_trip(layout, bits, symmetric);
}

TEST(Packed, ConfigurationComesBackAsWritten) {
  for (PackedLayout layout : {PackedLayout::gptq_v1, PackedLayout::gptq_v2, PackedLayout::pack_quantized})
    for (int64_t group_size : {64, 16})
      for (bool symmetric : {false, true}) {
        const AffineMatrix matrix = random_matrix(4, 32, 64, group_size, symmetric);
        const Module module(layout, matrix, symmetric);
        expect_equal(module.read(), matrix);
        module.with_checkpoint([&](const Checkpoint& checkpoint) {
          const auto config = packed_config(checkpoint);
          ASSERT_TRUE(config);
          EXPECT_EQ(config->layout, layout);
          EXPECT_EQ(config->bits, 4);
          EXPECT_EQ(config->symmetric, symmetric);
          EXPECT_EQ(config->group_size, group_size == 64 ? -1 : group_size);
          EXPECT_FALSE(config->mislabeled || config->mixed || config->older_3_bit);
        });
      }
}

/// Bits of `codes` one after the other, written one bit at a time.
std::vector<uint32_t> naive_stream(const std::vector<int>& codes, int bits) {
  std::vector<bool> stream;
  for (int code : codes)
    for (int bit = 0; bit < bits; ++bit) stream.push_back(code >> bit & 1);
  std::vector<uint32_t> words((stream.size() + 31) / 32);
  for (size_t i = 0; i < stream.size(); ++i) words[i / 32] |= uint32_t(stream[i]) << (i % 32);
  return words;
}

TEST(Packed, GptqAgreesWithPackingBitByBit) {
  for (int bits : {2, 3, 4, 8})
    for (bool minus_one : {false, true}) {
      const AffineMatrix matrix = random_matrix(bits, 64, 96, 32, false);
      const Module module(minus_one ? PackedLayout::gptq_v1 : PackedLayout::gptq_v2, matrix, false);
      EXPECT_EQ(module.tensors.at("m.qweight").shape, (std::vector<int64_t>{96 * bits / 32, 64}));
      EXPECT_EQ(module.tensors.at("m.qzeros").shape, (std::vector<int64_t>{3, 64 * bits / 32}));
      EXPECT_EQ(module.tensors.at("m.scales").shape, (std::vector<int64_t>{3, 64}));
      for (int64_t row = 0; row < 64; ++row) {
        std::vector<int> codes;
        for (int64_t i = 0; i < 96; ++i) codes.push_back(matrix.codes[size_t(row * 96 + i)]);
        const auto words = naive_stream(codes, bits);
        for (size_t i = 0; i < words.size(); ++i)
          ASSERT_EQ(module.peek<uint32_t>("qweight", i * 64 + size_t(row)), words[i])
              << bits << " " << row << " " << i;
      }
      for (int64_t group = 0; group < 3; ++group) {
        std::vector<int> zeros;
        for (int64_t row = 0; row < 64; ++row) {
          const int zero = matrix.zero_points[size_t(row * 3 + group)];
          zeros.push_back(!minus_one ? zero : zero == 0 ? matrix.max_code() : zero - 1);
          EXPECT_EQ(module.peek<uint16_t>("scales", size_t(group * 64 + row)),
                    matrix.scales[size_t(row * 3 + group)]);
        }
        const auto words = naive_stream(zeros, bits);
        for (size_t i = 0; i < words.size(); ++i)
          EXPECT_EQ(module.peek<uint32_t>("qzeros", size_t(group) * words.size() + i), words[i]);
      }
      for (int32_t i = 0; i < 96; ++i) EXPECT_EQ(module.peek<int32_t>("g_idx", size_t(i)), i / 32);
    }
}

TEST(Packed, PackQuantizedAgreesWithPackingBitByBit) {
  for (int bits : {2, 3, 4, 8}) {
    const AffineMatrix matrix = random_matrix(bits, 33, 44, 22, false);
    const Module module(PackedLayout::pack_quantized, matrix, false);
    const int64_t words = (44 * bits + 31) / 32, zero_rows = (33 * bits + 31) / 32;
    EXPECT_EQ(module.tensors.at("m.weight_packed").shape, (std::vector<int64_t>{33, words}));
    EXPECT_EQ(module.tensors.at("m.weight_scale").shape, (std::vector<int64_t>{33, 2}));
    EXPECT_EQ(module.tensors.at("m.weight_zero_point").shape, (std::vector<int64_t>{zero_rows, 2}));
    EXPECT_EQ(module.peek<int64_t>("weight_shape", 0), 33);
    EXPECT_EQ(module.peek<int64_t>("weight_shape", 1), 44);
    for (int64_t row = 0; row < 33; ++row) {
      std::vector<int> codes(size_t(words * 32 / bits + 1));  // zeros fill up the last word
      for (int64_t i = 0; i < 44; ++i) codes[size_t(i)] = matrix.codes[size_t(row * 44 + i)];
      const auto expected = naive_stream(codes, bits);
      for (int64_t i = 0; i < words; ++i)
        ASSERT_EQ(module.peek<uint32_t>("weight_packed", size_t(row * words + i)), expected[size_t(i)]);
    }
    for (int64_t group = 0; group < 2; ++group) {
      std::vector<int> zeros(size_t(zero_rows * 32 / bits + 1));
      for (int64_t row = 0; row < 33; ++row) zeros[size_t(row)] = matrix.zero_points[size_t(row * 2 + group)];
      const auto expected = naive_stream(zeros, bits);
      for (int64_t i = 0; i < zero_rows; ++i)
        ASSERT_EQ(module.peek<uint32_t>("weight_zero_point", size_t(i * 2 + group)), expected[size_t(i)]);
    }
  }
}

// What pack_to_int32 of compressed-tensors 0.20 makes of the same codes.
TEST(Packed, PackQuantizedAgreesWithItsOwnLibrary) {
  const struct {
    int bits;
    std::vector<uint32_t> words, zeros;
  } cases[] = {
      {2,
       {0x6C6C6C6C, 0x6C6C6C6C, 0x00006C6C, 0x55555555, 0x55555555, 0x00005555, 0x4E4E4E4E, 0x4E4E4E4E,
        0x00004E4E},
       {0x00000024, 0x00000013}},
      {3,
       {0x98ABC398, 0xC398ABC3, 0xABC398AB, 0x00ABC398, 0x4D34D34D, 0xD34D34D3, 0x34D34D34, 0x0034D34D,
        0x3AA1E33A, 0xE33AA1E3, 0xA1E33AA1, 0x00A1E33A},
       {0x00000088, 0x00000163}},
      {4,
       {0x52FC9630, 0xDA741EB8, 0x52FC9630, 0xDA741EB8, 0x52FC9630, 0x1D951D95, 0x1D951D95, 0x1D951D95,
        0x1D951D95, 0x1D951D95, 0xD83E94FA, 0x50B61C72, 0xD83E94FA, 0x50B61C72, 0xD83E94FA},
       {0x00000210, 0x00000543}},
  };
  for (const auto& expected : cases) {
    const int mask = (1 << expected.bits) - 1;
    AffineMatrix matrix = random_matrix(expected.bits, 3, 40, 20, false);
    for (int row = 0; row < 3; ++row) {
      for (int column = 0; column < 40; ++column)
        matrix.codes[size_t(row * 40 + column)] = uint8_t((5 * row + 3 * column + row * column) & mask);
      for (int group = 0; group < 2; ++group)
        matrix.zero_points[size_t(row * 2 + group)] = uint8_t((row + 3 * group) & mask);
    }
    const Module module(PackedLayout::pack_quantized, matrix, false);
    for (size_t i = 0; i < expected.words.size(); ++i)
      EXPECT_EQ(module.peek<uint32_t>("weight_packed", i), expected.words[i]) << expected.bits << " " << i;
    for (size_t i = 0; i < 2; ++i)
      EXPECT_EQ(module.peek<uint32_t>("weight_zero_point", i), expected.zeros[i])
          << expected.bits << " " << i;
  }
}

TEST(Packed, OlderFormOfThreeBitsIsRead) {
  // 64 inputs are told by the word count; 40 fit both forms, and the version decides.
  for (const auto& [out_features, in_features] : {std::pair(50, 64), {30, 40}}) {
    const AffineMatrix matrix = random_matrix(3, out_features, in_features, in_features / 2, false);
    Module module(PackedLayout::pack_quantized, matrix, false);
    module.quantization()["version"] = "0.17.1";
    const int64_t words = (in_features + 9) / 10, zero_rows = (out_features + 9) / 10;
    std::vector<uint32_t> packed(size_t(out_features * words)), zeros(size_t(zero_rows * 2));
    for (int64_t row = 0; row < out_features; ++row) {
      for (int64_t i = 0; i < in_features; ++i)
        packed[size_t(row * words + i / 10)] |= uint32_t(matrix.codes[size_t(row * in_features + i)])
                                                << (3 * (i % 10));
      for (int64_t group = 0; group < 2; ++group)
        zeros[size_t(row / 10 * 2 + group)] |= uint32_t(matrix.zero_points[size_t(row * 2 + group)])
                                               << (3 * (row % 10));
    }
    module.set("weight_packed", "I32", {out_features, words}, packed);
    module.set("weight_zero_point", "I32", {zero_rows, 2}, zeros);
    expect_equal(module.read(), matrix);
    module.quantization()["version"] = "0.18.0";
    if (in_features == 64)
      expect_equal(module.read(), matrix);
    else
      EXPECT_NE(module.read().codes, matrix.codes);
  }
}

TEST(Packed, SymmetricPackQuantizedHasNoZeroPoints) {
  const AffineMatrix matrix = random_matrix(4, 32, 64, 32, true);
  Module module(PackedLayout::pack_quantized, matrix, true);
  EXPECT_FALSE(module.tensors.contains("m.weight_zero_point"));
  expect_equal(module.read(), matrix);
  module.config = config_for(PackedLayout::pack_quantized, matrix, false);
  EXPECT_TRUE(module.fails_with("\"m.weight_zero_point\": is missing"));
}

TEST(Packed, WrongVersionLabelIsSeenForSymmetricWeights) {
  for (int bits : {2, 3, 4, 8})
    for (PackedLayout layout : {PackedLayout::gptq_v1, PackedLayout::gptq_v2}) {
      const AffineMatrix matrix = random_matrix(bits, 32, 64, 32, true);
      Module module(layout, matrix, true);
      module.quantization()["checkpoint_format"] = layout == PackedLayout::gptq_v1 ? "gptq_v2" : "gptq";
      expect_equal(module.read(), matrix);
      module.with_checkpoint([&](const Checkpoint& checkpoint) {
        EXPECT_TRUE(packed_config(checkpoint)->mislabeled);
        EXPECT_EQ(packed_config(checkpoint)->layout, layout);
      });
    }
  // Asymmetric zero points tell nothing, so the label counts.
  Module module(PackedLayout::gptq_v2, random_matrix(4, 32, 64, 32, false), false);
  module.quantization()["checkpoint_format"] = "gptq";
  EXPECT_EQ(module.read().zero_points[0], 1);
}

TEST(Packed, GroupsInAnotherOrderAreSorted) {
  for (PackedLayout layout : {PackedLayout::gptq_v2, PackedLayout::pack_quantized}) {
    const AffineMatrix matrix = random_matrix(4, 32, 64, 16, false);
    Module module(layout, matrix, false);
    std::vector<int32_t> order;
    for (int32_t i = 0; i < 64; ++i) order.push_back((i / 16 + 1) % 4);
    module.set<int32_t>(layout == PackedLayout::gptq_v2 ? "g_idx" : "weight_g_idx", "I32", {64}, order);
    const AffineMatrix read = module.read();
    EXPECT_EQ(read.codes, matrix.codes);
    for (int64_t row = 0; row < 32; ++row)
      for (int64_t group = 0; group < 4; ++group) {
        EXPECT_EQ(read.scale(row, group), matrix.scale(row, (group + 1) % 4));
        EXPECT_EQ(read.zero_points[size_t(row * 4 + group)],
                  matrix.zero_points[size_t(row * 4 + (group + 1) % 4)]);
      }
  }
}

TEST(Packed, GroupIndexMistakes) {
  const Module whole(PackedLayout::gptq_v2, random_matrix(4, 32, 64, 16, false), false);
  Module module = whole;
  module.tensors.erase("m.g_idx");
  EXPECT_NO_THROW(module.read());
  for (int32_t group : {4, -1, INT32_MAX, INT32_MIN}) {
    module = whole;
    module.poke<int32_t>("g_idx", 5, group);
    EXPECT_TRUE(module.fails_with("\"m.g_idx\": expected groups in [0, 3]"));
  }
  module = whole;
  module.poke<int32_t>("g_idx", 5, 1);
  EXPECT_TRUE(module.fails_with("act-order (desc_act) without static groups is not supported"));
  module = whole;
  module.set<int32_t>("g_idx", "I32", {64}, std::vector<int32_t>(64));
  EXPECT_TRUE(module.fails_with("expected each group's 16 columns together"));
  module.set<int32_t>("g_idx", "I32", {32}, std::vector<int32_t>(32));
  EXPECT_TRUE(module.fails_with("\"m.g_idx\": expected shape [64], got [32]"));
  module.set<int64_t>("g_idx", "I64", {64}, std::vector<int64_t>(64));
  EXPECT_TRUE(module.fails_with("\"m.g_idx\": expected dtype I32, got \"I64\""));
}

TEST(Packed, UnusableScalesAreRefused) {
  for (PackedLayout layout : {PackedLayout::gptq_v1, PackedLayout::pack_quantized}) {
    const char* const name = layout == PackedLayout::gptq_v1 ? "scales" : "weight_scale";
    const Module whole(layout, random_matrix(4, 32, 64, 16, true), true);
    for (uint16_t bad : {0x0000, 0x8000, 0x7C00, 0xFC00, 0x7E00, 0x03FF, 0x0001, 0xBC00}) {
      Module module = whole;
      module.poke<uint16_t>(name, 17, bad);
      EXPECT_TRUE(module.fails_with("expected positive normal numbers, got ")) << bad;
      EXPECT_TRUE(module.fails_with("at index 17"));
    }
    Module module = whole;
    module.poke<uint16_t>(name, 17, 0x0400);  // the smallest normal number
    EXPECT_NO_THROW(module.read());
    module.tensors.at(std::string("m.") + name).dtype = "I16";
    EXPECT_TRUE(module.fails_with("expected dtype F32, F16 or BF16"));
  }
}

TEST(Packed, WiderScalesAreRoundedToHalves) {
  const AffineMatrix matrix = random_matrix(4, 32, 64, 16, true);
  Module module(PackedLayout::pack_quantized, matrix, true);
  std::vector<float> floats;
  std::vector<uint16_t> brief;
  for (uint16_t scale : matrix.scales) {
    floats.push_back(f16_to_f32(scale) * (1 + 0x1p-13f));  // rounds back down
    brief.push_back(f32_to_bf16(f16_to_f32(scale)));
  }
  module.set<float>("weight_scale", "F32", {32, 4}, floats);
  expect_equal(module.read(), matrix);
  for (float bad : {1e6f, 1e-9f, 1e-40f, 0.0f, -1.0f}) {
    floats[3] = bad;
    module.set<float>("weight_scale", "F32", {32, 4}, floats);
    EXPECT_TRUE(module.fails_with("at index 3")) << bad;
  }
  module.set<uint16_t>("weight_scale", "BF16", {32, 4}, brief);
  const AffineMatrix read = module.read();
  for (size_t i = 0; i < brief.size(); ++i) EXPECT_EQ(f16_to_f32(read.scales[i]), bf16_to_f32(brief[i]));
}

TEST(Packed, GptqShapeMistakes) {
  const Module whole(PackedLayout::gptq_v2, random_matrix(4, 32, 64, 16, false), false);
  const auto words = [](size_t count) { return std::vector<int32_t>(count); };
  struct Row {
    const char* part;
    std::function<void(Module&)> change;
  };
  const Row rows[] = {
      {"expected shape [_, 48]", [](Module& m) { m.out_features = 48; }},
      {"expected 96 * bits / 32 rows", [](Module& m) { m.in_features = 96; }},
      {"expected 4 bits (quantization_config), got the shape of 8", [](Module& m) { m.in_features = 32; }},
      {"expected 4 bits (quantization_config), got the shape of 2", [](Module& m) { m.in_features = 128; }},
      {"expected 8 bits", [](Module& m) { m.quantization()["bits"] = 8; }},
      {"expected 2 groups of 32 (quantization_config), got 4",
       [](Module& m) { m.quantization()["group_size"] = 32; }},
      {"expected 1 groups of 64", [](Module& m) { m.quantization()["group_size"] = -1; }},
      {"group_size 48 of quantization_config does not divide 64",
       [](Module& m) { m.quantization()["group_size"] = 48; }},
      {"group_size 128 of quantization_config does not divide 64",
       [](Module& m) { m.quantization()["group_size"] = 128; }},
      {"expected dtype I32, got \"U32\"", [](Module& m) { m.tensors["m.qweight"].dtype = "U32"; }},
      {"expected 64 * bits / 32 rows",
       [&](Module& m) {
         m.set("qweight", "I32", {7, 32}, words(7 * 32));
       }},
      {"expected 64 * bits / 32 rows",
       [&](Module& m) {
         m.set("qweight", "I32", {0, 32}, words(0));
       }},
      {"expected shape [_, 32], got [8,0]",
       [&](Module& m) {
         m.set("qweight", "I32", {8, 0}, words(0));
       }},
      {"expected shape [_, 32], got [256]", [](Module& m) { m.tensors["m.qweight"].shape = {256}; }},
      {"tensor \"m.qzeros\" is missing", [](Module& m) { m.tensors.erase("m.qzeros"); }},
      {"tensor \"m.scales\" is missing", [](Module& m) { m.tensors.erase("m.scales"); }},
      {"\"m.qzeros\": expected shape [4,4], got [4,3]",
       [&](Module& m) {
         m.set("qzeros", "I32", {4, 3}, words(12));
       }},
      {"\"m.qzeros\": expected shape [4,4], got [3,4]",
       [&](Module& m) {
         m.set("qzeros", "I32", {3, 4}, words(12));
       }},
      {"\"m.qzeros\": expected dtype I32", [&](Module& m) { m.tensors["m.qzeros"].dtype = "F32"; }},
      {"\"m.scales\": expected shape [_, 32]",
       [](Module& m) {
         m.tensors["m.scales"].shape = {32, 4};
       }},
      {"evenly, got 0 groups",
       [](Module& m) {
         m.set<uint16_t>("scales", "F16", {0, 32}, {});
       }},
      {"evenly, got 3 groups",
       [](Module& m) {
         m.set("scales", "F16", {3, 32}, std::vector<uint16_t>(96));
       }},
      {"is there beside weight_packed", [&](Module& m) { m.set("weight_packed", "I32", {1}, words(1)); }},
      {"is missing, and so is weight_packed", [](Module& m) { m.tensors.erase("m.qweight"); }},
      {"expected quantization_config for the packed tensors", [](Module& m) { m.config = json::object(); }},
  };
  for (const Row& row : rows) {
    Module module = whole;
    row.change(module);
    EXPECT_TRUE(module.fails_with(row.part)) << row.part;
  }
}

TEST(Packed, PackQuantizedShapeMistakes) {
  const Module whole(PackedLayout::pack_quantized, random_matrix(4, 32, 64, 16, false), false);
  const auto words = [](size_t count) { return std::vector<int32_t>(count); };
  struct Row {
    const char* part;
    std::function<void(Module&)> change;
  };
  const Row rows[] = {
      {"expected shape [48, _]", [](Module& m) { m.out_features = 48; }},
      {"\"m.weight_shape\": expected [32, 60], got [32, 64]", [](Module& m) { m.in_features = 60; }},
      {"no width of 2, 3, 4 or 8 bits packs 1000 inputs", [](Module& m) { m.in_features = 1000; }},
      {"expected 8 bits",
       [](Module& m) { m.quantization()["config_groups"]["group_0"]["weights"]["num_bits"] = 8; }},
      {"expected 2 groups of 32",
       [](Module& m) { m.quantization()["config_groups"]["group_0"]["weights"]["group_size"] = 32; }},
      {"\"m.weight_packed\": expected dtype I32",
       [](Module& m) { m.tensors["m.weight_packed"].dtype = "U32"; }},
      {"packs 64 inputs into 9 words",
       [&](Module& m) {
         m.set("weight_packed", "I32", {32, 9}, words(32 * 9));
       }},
      {"packs 64 inputs into 0 words",
       [&](Module& m) {
         m.set("weight_packed", "I32", {32, 0}, words(0));
       }},
      {"\"m.weight_shape\": expected two",
       [](Module& m) {
         m.set<int64_t>("weight_shape", "I64", {3}, {32, 64, 1});
       }},
      {"got [-1, 64]", [](Module& m) { m.poke<int64_t>("weight_shape", 0, -1); }},
      {"\"m.weight_scale\": expected shape [32, _]",
       [](Module& m) {
         m.tensors["m.weight_scale"].shape = {4, 32};
       }},
      {"\"m.weight_zero_point\": expected shape [4,4]",
       [&](Module& m) {
         m.set("weight_zero_point", "I32", {32, 4}, words(128));
       }},
      {"is a GPTQ tensor",
       [](Module& m) {
         m.tensors["m.qweight"] = m.tensors["m.weight_packed"];
         m.tensors.erase("m.weight_packed");
       }},
  };
  for (const Row& row : rows) {
    Module module = whole;
    row.change(module);
    EXPECT_TRUE(module.fails_with(row.part)) << row.part;
  }
}

TEST(Packed, AGptqFolderMayHoldOtherModules) {
  const TempFolder folder;
  const AffineMatrix usual = random_matrix(3, 64, 96, 32, false), odd = random_matrix(3, 50, 96, 32, false);
  const AffineMatrix wide = random_matrix(8, 64, 96, 96, false);
  EXPECT_FALSE(layout_holds(PackedLayout::gptq_v2, 3, 50, 96));
  {
    CheckpointWriter writer(folder / "a", {});
    EXPECT_TRUE(throws_with("the GPTQ layout cannot hold 50 x 96",
                            [&] { write_packed(writer, "x", odd, PackedLayout::gptq_v2); }));
    write_packed(writer, "l.0.usual", usual, PackedLayout::gptq_v2);
    write_packed(writer, "l.0.odd", odd, PackedLayout::pack_quantized);
    const PackedConfig config{.layout = PackedLayout::gptq_v2, .bits = 3, .group_size = 32};
    writer.finish({{"quantization_config", packed_config_json(config)}});
    const Checkpoint checkpoint = Checkpoint::open(folder / "a");
    expect_equal(read_packed(checkpoint, "l.0.usual", 64, 96), usual);
    expect_equal(read_packed(checkpoint, "l.0.odd", 50, 96), odd);
  }
  // Widths that differ between modules are declared, and then come from the tensors.
  for (PackedLayout layout : {PackedLayout::gptq_v2, PackedLayout::pack_quantized}) {
    CheckpointWriter writer(folder / "b", {.overwrite = true});
    write_packed(writer, "l.0.usual", usual, layout);
    write_packed(writer, "l.0.wide", wide, layout);
    const PackedConfig config{.layout = layout, .bits = 3, .group_size = 32};
    writer.finish(
        {{"quantization_config", packed_config_json(config, {{"l.0.wide", layout, 8, -1}}, {"lm_head"})}});
    const Checkpoint checkpoint = Checkpoint::open(folder / "b");
    EXPECT_TRUE(packed_config(checkpoint)->mixed);
    expect_equal(read_packed(checkpoint, "l.0.usual", 64, 96), usual);
    expect_equal(read_packed(checkpoint, *packed_config(checkpoint), "l.0.wide", 64, 96), wide);
  }
}

TEST(Packed, WritingRefusesWhatCouldNotBeRead) {
  const TempFolder folder;
  CheckpointWriter writer(folder / "a", {});
  AffineMatrix matrix = random_matrix(4, 32, 64, 16, true);
  matrix.scales[5] = 0x0001;
  EXPECT_TRUE(throws_with("is subnormal", [&] { write_packed(writer, "m", matrix, PackedLayout::gptq_v1); }));
  matrix.scales[5] = 0x7C00;
  EXPECT_TRUE(throws_with("not a positive finite",
                          [&] { write_packed(writer, "m", matrix, PackedLayout::gptq_v1); }));
  matrix.scales[5] = 0x3C00;
  matrix.zero_points[0] = 3;
  EXPECT_THROW(write_packed(writer, "m", matrix, PackedLayout::pack_quantized, true), ContractError);
}

}  // namespace
}  // namespace ballast
