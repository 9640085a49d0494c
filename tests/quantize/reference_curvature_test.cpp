// Curvature from gradients against PyTorch's autograd in float64 (tools/golden_curvature.py) on tiny models.
#include <gtest/gtest.h>

#include <cmath>

#include "models/registry.h"
#include "quantize/gradient_statistics.h"
#include "tests/quantize/golden_layer.h"

namespace ballast {
namespace {

class ReferenceCurvature : public testing::TestWithParam<const char*> {
 protected:
  const std::string variant_ = GetParam();
  const nlohmann::json facts_ =
      parse_json(read_file(golden_quantize() / "curvature.json", 1 << 20), "curvature.json").at(variant_);
  const GoldenTensors tensors_{golden_quantize() / "curvature.safetensors"};

  GradientStatistics gather(const GradientKinds& kinds) const {
    const auto backend = find_backend({.device = "cpu"});
    const Checkpoint checkpoint =
        Checkpoint::open(std::filesystem::path(BALLAST_SOURCE_DIR) / "tests/golden/opt" / variant_);
    const auto model = load_model(checkpoint, *backend);
    const CalibrationTokens tokens{facts_.at("samples"), facts_.at("length"), facts_.at("ids"), "golden"};
    HiddenStream stream(*backend, *model, tokens);
    const int64_t block = facts_.at("block");
    stream.for_each_part([&](const HiddenStream::Part& part) {
      for (int64_t i = 0; i < block; ++i) model->block(i).forward(part.context, part.hidden);
    });
    return gather_gradients(
        {.backend = *backend, .model = *model, .stream = stream, .first = block, .kinds = kinds});
  }

  /// Gradients pass through some ten float32 layers; a curvature is their square.
  static void expect_near(const std::vector<double>& sum, double count, std::span<const float> expected,
                          const std::string& what) {
    ASSERT_EQ(sum.size(), expected.size()) << what;
    double largest = 0, apart = 0;
    for (size_t i = 0; i < sum.size(); ++i) {
      largest = std::max(largest, std::fabs(double(expected[i])));
      apart = std::max(apart, std::fabs(sum[i] / count - double(expected[i])));
    }
    EXPECT_LE(apart, 1e-5 * largest) << what;
  }
};

TEST_P(ReferenceCurvature, OutputAdaptiveCurvatureIsThatOfAutograd) {
  const GradientStatistics got = gather({.output_adaptive = true});
  EXPECT_NEAR(got.loss, double(facts_.at("loss")), 1e-6 * got.loss);
  for (const std::string name : facts_.at("output_adaptive")) {
    const LayerGradients* layer = got.find(name);
    ASSERT_NE(layer, nullptr) << name;
    expect_near(layer->output_adaptive.sum, double(layer->output_adaptive.count),
                tensors_.floats(variant_ + "/" + name + ".output_adaptive"), name);
  }
}

TEST_P(ReferenceCurvature, GuidedCurvatureIsThatOfAutograd) {
  const int64_t groups = facts_.at("guided_groups");
  const GradientStatistics got = gather({.guided_groups = groups});
  for (const std::string name : facts_.at("guided")) {
    const LayerGradients* layer = got.find(name);
    ASSERT_NE(layer, nullptr) << name;
    const std::vector<float> expected = tensors_.floats(variant_ + "/" + name + ".guided");
    const size_t size = expected.size() / size_t(groups);
    ASSERT_EQ(layer->guided.size(), size_t(groups));
    for (size_t k = 0; k < layer->guided.size(); ++k)
      expect_near(layer->guided[k].sum, double(layer->guided[k].count),
                  std::span(expected).subspan(k * size, size), name);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, ReferenceCurvature, testing::Values("plain", "post_norm_350m"),
                         [](const auto& variant) { return std::string(variant.param); });

}  // namespace
}  // namespace ballast
