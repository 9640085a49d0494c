// Folders with encodings that have no published layout, seen from outside.
#include "engine/io/quantized.h"
#include "tests/support/matrices.h"
#include "tests/tools/run_ballast.h"

namespace ballast {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSparse = "model.decoder.layers.0.fc1";
constexpr const char* kBinary = "model.decoder.layers.0.fc2";

/// The bundled model with two of its matrices replaced. Returns the first of them.
SparseOutlierMatrix write_folder(const fs::path& folder) {
  const Checkpoint source = Checkpoint::open(kDemo);
  CheckpointWriter writer(folder, {});
  test::Random random(1);
  const SparseOutlierMatrix sparse = test::random_outliers(random, 3, 3, 1024, 256, 16, 0.01f);
  const ResidualBinaryMatrix binary = test::random_binary(random, 256, 1024, 128);
  for (const StoredTensor& tensor : source.tensors())
    if (tensor.name != std::string(kSparse) + ".weight" && tensor.name != std::string(kBinary) + ".weight")
      writer.copy(source, tensor);
  write_quantized(writer, kSparse, sparse, PackedLayout::gptq_v2, false);
  write_quantized(writer, kBinary, binary, PackedLayout::gptq_v2, false);
  writer.copy_side_files(kDemo);
  nlohmann::json config = source.config();
  config["quantization_config"] = packed_config_json({.layout = PackedLayout::ballast,
                                                      .bits = 3,
                                                      .group_size = 16,
                                                      .encodings = {kResidualBinary, kSparseOutliers}});
  writer.finish(config);
  return sparse;
}

TEST(Encodings, InspectShowsBitsAndOutliers) {
  const TempFolder folder;
  const SparseOutlierMatrix sparse = write_folder(folder / "m");
  const Outcome run = ballast({"inspect", (folder / "m").string(), "--json", "--check-tensors"});
  ASSERT_EQ(run.code, 0) << run.err;
  const nlohmann::json object = run.json();
  int found = 0;
  for (const auto& linear : object["linears"]) {
    if (linear["name"] == kSparse) {
      ++found;
      EXPECT_EQ(linear["encoding"], "W3 g16 + outliers");
      EXPECT_DOUBLE_EQ(linear["bits_per_weight"], sparse.bits_per_weight());
      EXPECT_DOUBLE_EQ(linear["outlier_share"], sparse.facts().outlier_share());
      EXPECT_DOUBLE_EQ(object["outlier_share"], sparse.facts().outlier_share());
    } else if (linear["name"] == kBinary) {
      ++found;
      EXPECT_EQ(linear["encoding"], "residual binary b128");
      EXPECT_DOUBLE_EQ(linear["bits_per_weight"], 2 + 1.0 / 256 + 7 * 16 / 128.0);
    } else {
      EXPECT_FALSE(linear.contains("outlier_share"));
    }
  }
  EXPECT_EQ(found, 2);
  const Outcome text = ballast({"inspect", (folder / "m").string()});
  EXPECT_NE(text.out.find("W3 g16 + outliers ×1"), text.out.npos) << text.out;
  EXPECT_NE(text.out.find("\noutliers    1."), text.out.npos) << text.out;
}

TEST(Encodings, GenerateRunsAndExportSaysWhyNot) {
  const TempFolder folder;
  write_folder(folder / "m");
  const std::string path = (folder / "m").string();
  EXPECT_EQ(ballast({"generate", "-m", path, "-p", "x", "-n", "3"}).code, 0);
  EXPECT_TRUE(refused(ballast({"export", "-m", path, "-o", (folder / "o").string(), "--layout", "gptq"}),
                      "residual_binary, which has no published layout"));
}

}  // namespace
}  // namespace ballast
