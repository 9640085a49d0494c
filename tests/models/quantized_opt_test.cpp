// Models whose matrices are stored in each quantized encoding, against the same model with the decoded matrices
// stored as floats.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "engine/io/quantized.h"
#include "models/registry.h"
#include "tests/support/logits.h"
#include "tests/support/matrices.h"
#include "tests/support/reference.h"
#include "tests/support/temp_folder.h"

namespace ballast {
namespace {

const std::filesystem::path kPlain = std::filesystem::path(BALLAST_SOURCE_DIR) / "tests/golden/opt/plain";

enum class Kind { affine, outliers, binary, all };

// Every group size divides 36 and 80, the widths of the model.
QuantizedMatrix random_matrix(test::Random& random, Kind kind, int64_t out, int64_t in) {
  if (kind == Kind::all) kind = Kind(random.below(3));
  if (kind == Kind::affine) return test::random_affine(random, 3, out, in, in / 4);
  if (kind == Kind::outliers) return test::random_outliers(random, 3, 3, out, in, in / 4, 0.05f);
  return test::random_binary(random, out, in, 32);
}

/// Writes the model with random matrices in place of all linears and of the token table: as codes into
/// `codes`, as what they decode to into `dense`.
void write_twins(const std::filesystem::path& codes, const std::filesystem::path& dense, Kind kind) {
  const Checkpoint source = Checkpoint::open(kPlain);
  CheckpointWriter coded(codes, {}), decoded(dense, {});
  test::Random random(uint64_t(kind) + 1);
  for (const StoredTensor& tensor : source.tensors()) {
    if (tensor.shape.size() != 2 || tensor.name.find("embed_positions") != std::string::npos) {
      coded.copy(source, tensor);
      decoded.copy(source, tensor);
      continue;
    }
    const int64_t out = tensor.shape[0], in = tensor.shape[1];
    const QuantizedMatrix matrix = random_matrix(random, kind, out, in);
    const std::string module = tensor.name.substr(0, tensor.name.rfind('.'));
    write_quantized(coded, module, matrix, PackedLayout::pack_quantized, false);
    std::vector<float> values(size_t(out * in));
    for (int64_t row = 0; row < out; ++row) decode_row(matrix, row, values.data() + row * in);
    decoded.add(tensor.name, "F32", tensor.shape, values.data());
  }
  nlohmann::json config = source.config();
  decoded.finish(config);
  const PackedConfig packed{.layout = PackedLayout::ballast,
                            .bits = 3,
                            .group_size = -1,
                            .encodings = {kHalfZeros, kResidualBinary, kSparseOutliers}};
  config["quantization_config"] = packed_config_json(packed);
  coded.finish(config);
}

class QuantizedOpt : public testing::TestWithParam<Kind> {};

// Affine codes, with outliers or without, meet activations in integers and the twin's floats do not, so the two round differently: each of the
// 3 · 4 + 1 linears on the way by at most its width (80) times 2^-23 of what it puts out, and the layers between
// them keep the sizes. Residual binary weights are decoded for the float kernel: the twin's bits.
TEST_P(QuantizedOpt, RunsAsItsDecodedTwin) {
  const TempFolder folder;
  write_twins(folder / "codes", folder / "dense", GetParam());
  const Checkpoint codes = Checkpoint::open(folder / "codes"), dense = Checkpoint::open(folder / "dense");
  EXPECT_FALSE(dense.find("model.decoder.layers.0.fc1.weight_grid"));
  const auto backend = find_backend({.device = "cpu", .threads = 1});
  const auto model = load_model(codes, *backend), twin = load_model(dense, *backend);
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < 40; ++i) ids.push_back(i * 37 % 99);
  const std::vector<float> expected = logits_of(*backend, *twin, ids, ids.size());
  for (const float logit : expected) ASSERT_TRUE(std::isfinite(logit));
  const std::vector<float> logits = logits_of(*backend, *model, ids, ids.size());
  double largest = 0;
  for (const float logit : expected) largest = std::max(largest, std::abs(double(logit)));
  const bool floats = GetParam() == Kind::binary;
  const double bound = floats ? 0 : (3 * 4 + 1) * 80 * 0x1p-23 * largest;
  for (size_t i = 0; i < logits.size(); ++i) ASSERT_NEAR(logits[i], expected[i], bound) << "logit " << i;
  for (const size_t chunk : {size_t(7), size_t(1)})
    ASSERT_TRUE(test::same_bits(logits_of(*backend, *model, ids, chunk), logits)) << chunk << " at once";
}

std::string name_of_kind(const testing::TestParamInfo<Kind>& kind) {
  constexpr const char* kNames[] = {"affine", "outliers", "binary", "all"};
  return kNames[int(kind.param)];
}
INSTANTIATE_TEST_SUITE_P(, QuantizedOpt,
                         testing::Values(Kind::affine, Kind::outliers, Kind::binary, Kind::all),
                         name_of_kind);

TEST(QuantizedOptFolder, CannotBeReadAsFloats) {
  const TempFolder folder;
  write_twins(folder / "codes", folder / "dense", Kind::outliers);
  // As a program would that knows no quantization_config.
  const Checkpoint codes = Checkpoint::open(folder / "codes"), dense = Checkpoint::open(folder / "dense");
  for (const StoredTensor& tensor : dense.tensors()) {
    const StoredTensor& other = codes.require(tensor.name);
    const bool matrix = tensor.shape.size() == 2 && tensor.name.find("embed_positions") == std::string::npos;
    EXPECT_EQ(other.shape != tensor.shape && other.dtype != tensor.dtype, matrix) << tensor.name;
  }
}

}  // namespace
}  // namespace ballast
