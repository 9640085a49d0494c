#include "quantize/output.h"

#include <gtest/gtest.h>

#include "engine/io/json.h"
#include "tests/support/expect_error.h"
#include "tests/support/matrices.h"
#include "tests/support/temp_folder.h"

namespace ballast {
namespace {

/// A folder with two modules of 32 × 64 floats, a norm and a bias.
void write_source(const std::filesystem::path& folder) {
  CheckpointWriter writer(folder, {});
  test::Random random(1);
  for (const char* name : {"l.0.weight", "l.1.weight"}) {
    std::vector<uint16_t> values = test::random_halves(random, 32 * 64, -1, 1);
    writer.add(name, "F16", {32, 64}, values.data());
  }
  const std::vector<float> ones(64, 1);
  writer.add("norm.weight", "F32", {64}, ones.data());
  writer.finish({{"model_type", "opt"}});
}

void write(const std::filesystem::path& source, const std::filesystem::path& output,
           const std::vector<QuantizedMatrix>& matrices) {
  const Checkpoint checkpoint = Checkpoint::open(source);
  CheckpointWriter writer(output, {});
  Recipe recipe;
  recipe.grid.bits = 3;
  recipe.grid.group_size = 16;
  QuantizedOutput out(checkpoint, writer, recipe);
  for (size_t i = 0; i < matrices.size(); ++i) {
    const std::string module = str("l.", i);
    out.add_matrix(module, matrices[i]);
    // Vectors beside a module take its float type, never that of codes.
    out.add_vector(module, ".bias", std::vector<float>(32, 0.5f), {32});
  }
  out.finish({}, false);
}

TEST(QuantizedOutput, EncodingsWithoutAPublishedLayoutAreAnnounced) {
  const TempFolder folder;
  write_source(folder / "float");
  test::Random random(2);
  const QuantizedMatrix sparse = test::random_outliers(random, 3, 3, 32, 64, 16);
  const QuantizedMatrix binary = test::random_binary(random, 32, 64, 32);
  AffineMatrix whole = test::random_affine(random, 3, 32, 64, 16);
  whole.half_zeros = false;
  const QuantizedMatrix affine = whole;
  write(folder / "float", folder / "own", {sparse, binary});
  const Checkpoint own = Checkpoint::open(folder / "own");
  EXPECT_EQ(own.config()["quantization_config"]["quant_method"], "ballast");
  EXPECT_EQ(packed_config(own)->encodings, (std::vector<std::string>{kResidualBinary, kSparseOutliers}));
  EXPECT_EQ(read_quantized(own, "l.0", 32, 64), sparse);
  EXPECT_EQ(read_quantized(own, "l.1", 32, 64), binary);
  EXPECT_EQ(own.require("l.0.bias").dtype, "F16");
  EXPECT_FALSE(std::filesystem::exists(folder / "own" / "quantize_config.json"));

  // Quantized anew, nothing of the old encoding stays behind.
  write(folder / "own", folder / "affine", {affine, affine});
  const Checkpoint again = Checkpoint::open(folder / "affine");
  EXPECT_EQ(again.config()["quantization_config"]["quant_method"], "gptq");
  EXPECT_EQ(read_quantized(again, "l.0", 32, 64), affine);
  EXPECT_EQ(again.require("l.0.bias").dtype, "F16");
  for (const StoredTensor& tensor : again.tensors())
    EXPECT_EQ(tensor.name.find("weight_"), std::string::npos) << tensor.name;

  write(folder / "own", folder / "mixed", {binary, affine});
  const Checkpoint mixed = Checkpoint::open(folder / "mixed");
  EXPECT_EQ(read_quantized(mixed, "l.0", 32, 64), binary);
  EXPECT_EQ(read_quantized(mixed, "l.1", 32, 64), affine);
}

}  // namespace
}  // namespace ballast
