// Every OPT variant against logits of an independent implementation (see tests/golden/README.md).
#include "models/opt.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "engine/io/json.h"
#include "models/registry.h"
#include "tests/support/golden_folders.h"
#include "tests/support/golden_tensors.h"
#include "tests/support/logits.h"

namespace ballast {
namespace {

const std::filesystem::path kGoldens = std::filesystem::path(BALLAST_SOURCE_DIR) / "tests/golden/opt";

class OptVariant : public testing::TestWithParam<std::string> {};

TEST_P(OptVariant, LogitsMatchTransformers) {
  const Checkpoint checkpoint = Checkpoint::open(kGoldens / GetParam());
  const auto backend = find_backend({.device = "cpu"});
  const auto model = load_model(checkpoint, *backend);
  const std::string file = (kGoldens / GetParam() / "golden.json").string();
  const nlohmann::json facts = parse_json(read_file(file, 1 << 20), file);
  const GoldenTensors golden(kGoldens / GetParam() / "golden.safetensors");
  size_t index = 0;
  for (const auto& sequence : facts.at("inputs")) {
    const auto ids = sequence.get<std::vector<int32_t>>();
    const std::vector<float> expected = golden.floats(str("logits_", index++));
    const std::vector<float> whole = logits_of(*backend, *model, ids, ids.size());
    ASSERT_EQ(whole.size(), expected.size());
    double worst = 0;
    for (size_t i = 0; i < whole.size(); ++i)
      worst = std::max(worst, double(std::fabs(whole[i] - expected[i])));
    EXPECT_LE(worst, 2e-4) << ids.size() << " tokens";
    for (size_t chunk : {size_t(1), size_t(5), size_t(16)})
      EXPECT_EQ(logits_of(*backend, *model, ids, chunk), whole) << "in chunks of " << chunk;
  }
  EXPECT_GT(index, 0u);
}

INSTANTIATE_TEST_SUITE_P(All, OptVariant, testing::ValuesIn(test::subfolders(kGoldens)),
                         [](const auto& variant) { return variant.param; });

}  // namespace
}  // namespace ballast
