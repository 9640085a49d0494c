// Gradients through every OPT variant.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>

#include "engine/io/json.h"
#include "engine/nn/backward.h"
#include "engine/runtime/batch.h"
#include "models/registry.h"
#include "tests/support/golden_folders.h"
#include "tests/support/golden_tensors.h"

namespace ballast {
namespace {

const std::filesystem::path kGoldens = std::filesystem::path(BALLAST_SOURCE_DIR) / "tests/golden/opt";

// Two sequences through a whole model.
class Passes {
 public:
  Passes(const std::string& variant, std::vector<size_t> sequences)
      : checkpoint_(Checkpoint::open(kGoldens / variant)),
        model(load_model(checkpoint_, *backend)),
        workspace_(*backend),
        cache_(*backend, model->facts(), model->facts().layers, 256) {
    const std::string file = (kGoldens / variant / "golden.json").string();
    const nlohmann::json facts = parse_json(read_file(file, 1 << 20), file);
    for (size_t index : sequences) {
      ids_.push_back(facts.at("inputs").at(index).get<std::vector<int32_t>>());
      pages_.emplace_back();
      EXPECT_TRUE(cache_.reserve(pages_.back(), int64_t(ids_.back().size())));
    }
    for (size_t i = 0; i < ids_.size(); ++i) batch_.add(ids_[i], 0, pages_[i]);
    rows_ = batch_.rows();
    for (int64_t i = 0; i < model->facts().layers; ++i) blocks_.push_back(&model->block(i));
  }

  double backward(const nn::Loss& loss, nn::Observer* observer, int64_t first = 0) {
    const nn::ForwardContext context{*backend, workspace_, rows_, cache_.views(), observer};
    const nn::ForwardContext plain{*backend, workspace_, rows_, cache_.views()};
    Workspace::Scope scope(workspace_);
    const OutputView hidden = workspace_.floats({rows_.tokens(), model->facts().hidden});
    model->embed(plain, hidden);
    for (int64_t i = 0; i < first; ++i) blocks_[size_t(i)]->forward(plain, hidden);
    return nn::back_propagate(context, {*model, std::span(blocks_).subspan(size_t(first)), hidden, loss});
  }

  /// The linear layers of the blocks, and project_out and the head, which are on the way as well.
  std::vector<nn::Linear*> layers() {
    std::vector<nn::Linear*> all;
    for (nn::Block* block : blocks_)
      for (const auto& branch : block->branches) {
        for (nn::Linear* layer : branch->expand()) all.push_back(layer);
        all.push_back(&branch->contract());
      }
    if (!model->outer_linears().empty()) all.push_back(model->outer_linears().back());
    all.push_back(&model->lm_head());
    return all;
  }

 private:
  std::vector<std::vector<int32_t>> ids_;
  std::vector<PageTable> pages_;

 public:
  std::unique_ptr<Backend> backend = find_backend({.device = "cpu", .threads = 1});

 private:
  Checkpoint checkpoint_;

 public:
  std::unique_ptr<nn::Model> model;

 private:
  Workspace workspace_;
  KvCache cache_;
  Batch batch_;
  nn::BatchRows rows_;
  std::vector<nn::Block*> blocks_;
};

// dW and db of every layer, in f64, and the order in which layers were seen.
struct Gradients final : nn::Observer {
  struct Layer {
    std::vector<double> weight, bias, input;
  };
  std::map<std::string, Layer> layers;
  std::vector<std::string> order;

  void input(const nn::Linear& layer, const TensorView& x) override {
    std::vector<double>& kept = layers[layer.name].input;
    EXPECT_TRUE(kept.empty()) << layer.name << " seen twice";
    kept.assign(x.as<float>(), x.as<float>() + x.shape.elements());
  }
  void gradient(const nn::Linear& layer, const TensorView& x, const TensorView& dz) override {
    const int64_t in = x.shape[1], out = dz.shape[1];
    order.push_back(layer.name);
    Layer& mine = layers[layer.name];
    EXPECT_TRUE(mine.weight.empty()) << layer.name << " seen twice";
    mine.weight.resize(size_t(out * in));
    mine.bias.resize(size_t(out));
    for (int64_t t = 0; t < x.shape[0]; ++t)
      for (int64_t r = 0; r < out; ++r) {
        mine.bias[size_t(r)] += double(dz.row(t)[r]);
        for (int64_t i = 0; i < in; ++i)
          mine.weight[size_t(r * in + i)] += double(dz.row(t)[r]) * double(x.row(t)[i]);
      }
    // What the layer read then is what it is shown now.
    for (size_t i = 0; i < mine.input.size(); ++i)
      ASSERT_EQ(mine.input[i], double(x.as<float>()[i])) << layer.name;
  }
};

class OptBackward : public testing::TestWithParam<std::string> {};

// The loss as a function of one layer's bias, moved along its gradient: one directional slope checks all that lies
// behind the layer. f32 logits of order 1 leave the loss of 40 tokens uncertain by about 1e-5, the steps move it
// by 0.02·|gradient|, and its third derivative adds a relative error of the order of the step's square.
TEST_P(OptBackward, BiasSlopesMatchDifferences) {
  Passes passes(GetParam(), {3, 2});
  const nn::Loss loss = nn::next_token_loss();
  Gradients gradients;
  for (nn::Linear* layer : passes.layers())
    if (!layer->bias)
      layer->bias = Tensor::from_floats(*passes.backend, std::vector<float>(size_t(layer->out_features())),
                                        {layer->out_features()});
  EXPECT_GT(passes.backward(loss, &gradients), 0);
  for (nn::Linear* layer : passes.layers()) {
    ASSERT_TRUE(gradients.layers.contains(layer->name)) << layer->name;
    const std::vector<double>& gradient = gradients.layers.at(layer->name).bias;
    double length = 0;
    for (double value : gradient) length += value * value;
    length = std::sqrt(length);
    const std::vector<float> bias = layer->bias.to_floats();
    const double step = 1.0 / 256;
    const auto moved = [&](double by) {
      std::vector<float> there = bias;
      for (size_t i = 0; i < there.size(); ++i)
        there[i] = float(double(bias[i]) + by * gradient[i] / std::max(length, 1e-9));
      passes.backend->copy_to_device(layer->bias.view().as<void>(), there.data(), layer->bias.bytes());
      return passes.backward(loss, nullptr);
    };
    const double slope =
        (8 * (moved(step) - moved(-step)) - (moved(2 * step) - moved(-2 * step))) / (12 * step);
    passes.backend->copy_to_device(layer->bias.view().as<void>(), bias.data(), layer->bias.bytes());
    EXPECT_NEAR(slope, length, 0.01 * length + 0.01) << layer->name;
  }
}

TEST_P(OptBackward, StartingLaterAndInOtherCompanyGivesTheSameBits) {
  Passes passes(GetParam(), {3, 2});
  Gradients whole, late;
  const double loss = passes.backward(nn::next_token_loss(), &whole);
  const int64_t first = passes.model->facts().layers - 1;
  EXPECT_EQ(passes.backward(nn::next_token_loss(), &late, first), loss);
  EXPECT_LT(late.layers.size(), whole.layers.size());
  EXPECT_EQ(late.order.front(), passes.model->lm_head().name);
  for (const auto& [name, layer] : late.layers) EXPECT_EQ(layer.weight, whole.layers.at(name).weight) << name;
  // The same sequences alone: their gradients add up.
  Passes one(GetParam(), {3}), two(GetParam(), {2});
  Gradients first_alone, second_alone;
  const double sum =
      one.backward(nn::next_token_loss(), &first_alone) + two.backward(nn::next_token_loss(), &second_alone);
  EXPECT_NEAR(sum, loss, 1e-9 * std::fabs(loss));
  for (const auto& [name, layer] : whole.layers)
    for (size_t i = 0; i < layer.bias.size(); ++i)
      EXPECT_NEAR(layer.bias[i], first_alone.layers.at(name).bias[i] + second_alone.layers.at(name).bias[i],
                  1e-9 + 1e-9 * std::fabs(layer.bias[i]))
          << name;
}

// The reference is float64 throughout. What f32 loses on the way there and back is some roundings per element of
// the longest sum (84 of fc2) and block, of values no larger than a matrix's largest gradient.
class OptGradients : public testing::TestWithParam<std::string> {};
TEST_P(OptGradients, MatchAutograd) {
  Passes passes(GetParam(), {3});
  const GoldenTensors golden(kGoldens / GetParam() / "gradients.safetensors");
  Gradients gradients;
  const double loss = passes.backward(nn::next_token_loss(), &gradients);
  const double expected_loss = double(golden.floats("loss").at(0));
  EXPECT_NEAR(loss, expected_loss, 1e-6 * expected_loss);
  size_t compared = 0;
  for (const nn::Linear* layer : passes.layers()) {
    if (layer == &passes.model->lm_head()) continue;  // tied: the reference adds the embedding's share
    const std::vector<double>& weight = gradients.layers.at(layer->name).weight;
    const std::vector<float> expected = golden.floats(layer->name + ".weight");
    ASSERT_EQ(weight.size(), expected.size());
    double largest = 0, worst = 0;
    for (size_t i = 0; i < weight.size(); ++i) {
      largest = std::max(largest, std::fabs(double(expected[i])));
      worst = std::max(worst, std::fabs(weight[i] - double(expected[i])));
    }
    EXPECT_LE(worst, 84 * 0x1p-24 * 4 * largest) << layer->name;
    EXPECT_GT(largest, 1e-3) << layer->name;
    ++compared;
  }
  EXPECT_GE(compared, 12u);
}
INSTANTIATE_TEST_SUITE_P(, OptGradients, testing::Values("plain", "post_norm_350m", "gelu"),
                         [](const auto& one) { return one.param; });

INSTANTIATE_TEST_SUITE_P(All, OptBackward, testing::ValuesIn(test::subfolders(kGoldens)),
                         [](const auto& one) { return one.param; });

}  // namespace
}  // namespace ballast
