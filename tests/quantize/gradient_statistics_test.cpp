#include "quantize/gradient_statistics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "engine/nn/backward.h"
#include "models/registry.h"
#include "tests/support/random.h"

namespace ballast {
namespace {

const std::filesystem::path kGoldens = std::filesystem::path(BALLAST_SOURCE_DIR) / "tests/golden/opt";
constexpr double kRound32 = 0x1p-24;

// A tiny model, its hidden stream before block `first`, and what passes over it gather.
struct Tiny {
  Tiny(const std::string& variant, int64_t first, int threads = 1)
      : checkpoint(Checkpoint::open(kGoldens / variant)),
        backend(find_backend({.device = "cpu", .threads = threads})),
        model(load_model(checkpoint, *backend)),
        tokens(random_tokens(model->facts().vocab)),
        stream(*backend, *model, tokens) {
    advance(first);
  }
  void advance(int64_t blocks) {
    stream.for_each_part([&](const HiddenStream::Part& part) {
      for (int64_t i = 0; i < blocks; ++i) model->block(i).forward(part.context, part.hidden);
    });
  }
  // Blocks that add exact zeros: the stream behind them is the one before them, bit for bit.
  void make_identities(int64_t blocks) {
    for (int64_t i = 0; i < blocks; ++i)
      for (const auto& branch : model->block(i).branches) {
        nn::Linear& layer = branch->contract();
        const int64_t out = layer.out_features(), in = layer.in_features();
        const std::vector<float> zeros(size_t(out * in));
        layer.weight = Weight::dense(*backend, {zeros.data(), DType::f32, {out, in}});
        layer.bias = Tensor::from_floats(*backend, std::vector<float>(size_t(out)), {out});
      }
  }
  static CalibrationTokens random_tokens(int64_t vocab) {
    test::Random random(3);
    CalibrationTokens out{5, 19, {}, "random"};
    for (int64_t i = 0; i < out.samples * out.length; ++i) out.ids.push_back(int32_t(random.below(vocab)));
    return out;
  }
  GradientRequest request(int64_t first, GradientKinds kinds) {
    return {.backend = *backend, .model = *model, .stream = stream, .first = first, .kinds = kinds};
  }

  Checkpoint checkpoint;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<nn::Model> model;
  CalibrationTokens tokens;
  HiddenStream stream;
};

// x (with its constant 1) and dz of every layer, all samples in one matrix.
struct Recorder final : nn::Observer {
  struct Layer {
    int64_t in = 0, out = 0;
    std::vector<double> x, dz;
  };
  std::map<std::string, Layer> layers;
  void input(const nn::Linear&, const TensorView&) override {}
  void gradient(const nn::Linear& layer, const TensorView& x, const TensorView& dz) override {
    Layer& mine = layers[layer.name];
    mine.in = x.shape[1];
    mine.out = dz.shape[1];
    for (int64_t t = 0; t < x.shape[0]; ++t) {
      mine.x.insert(mine.x.end(), x.row(t), x.row(t) + mine.in);
      mine.x.push_back(1);
      mine.dz.insert(mine.dz.end(), dz.row(t), dz.row(t) + mine.out);
    }
  }
};

std::map<std::string, Recorder::Layer> recorded(Tiny& tiny, int64_t first) {
  Recorder recorder;
  std::vector<nn::Block*> blocks;
  for (int64_t i = first; i < tiny.model->facts().layers; ++i) blocks.push_back(&tiny.model->block(i));
  tiny.stream.for_each_part([&](const HiddenStream::Part& part) {
    const nn::ForwardContext& plain = part.context;
    nn::back_propagate({plain.backend, plain.workspace, plain.batch, plain.cache, &recorder},
                       {*tiny.model, blocks, part.hidden, nn::next_token_loss()});
  });
  return recorder.layers;
}

// A sum and the sum of its terms' magnitudes.
struct Sum {
  double value = 0, magnitude = 0;
  void add(double term) {
    value += term;
    magnitude += std::fabs(term);
  }
};

// Σ_i Σ_r G_i[r][a] · G_i[r][b] by definition; the magnitude is that of the innermost terms.
Sum output_adaptive(const Recorder::Layer& layer, const CalibrationTokens& tokens, int64_t a, int64_t b) {
  const int64_t width = layer.in + 1;
  Sum sum;
  for (int64_t i = 0; i < tokens.samples; ++i)
    for (int64_t r = 0; r < layer.out; ++r) {
      Sum ga, gb;
      for (int64_t t = i * tokens.length; t < (i + 1) * tokens.length; ++t) {
        const double dz = layer.dz[size_t(t * layer.out + r)];
        ga.add(dz * layer.x[size_t(t * width + a)]);
        gb.add(dz * layer.x[size_t(t * width + b)]);
      }
      sum.value += ga.value * gb.value;
      sum.magnitude += ga.magnitude * gb.magnitude;
    }
  return sum;
}

// Σ_t s[t] · x[t][a] · x[t][b] by definition.
Sum guided(const Recorder::Layer& layer, int64_t first, int64_t last, int64_t a, int64_t b) {
  const int64_t width = layer.in + 1;
  Sum sum;
  for (int64_t t = 0; t * width < int64_t(layer.x.size()); ++t) {
    double s = 0;
    for (int64_t r = first; r < last; ++r)
      s += std::pow(layer.dz[size_t(t * layer.out + r)], 2) / double(last - first);
    sum.add(s * layer.x[size_t(t * width + a)] * layer.x[size_t(t * width + b)]);
  }
  return sum;
}

class GradientStatisticsOf : public testing::TestWithParam<std::string> {};

// f32 sums of `terms` values carry so many roundings of their magnitude, and the factors a few of their own.
TEST_P(GradientStatisticsOf, FollowTheDefinitions) {
  const int64_t first = 1, groups = 3;
  Tiny tiny(GetParam(), first);
  GradientRequest request = tiny.request(first, {.output_adaptive = true, .guided_groups = groups});
  request.head = true;
  const GradientStatistics statistics = gather_gradients(request);
  const auto reference = recorded(tiny, first);
  EXPECT_EQ(statistics.layers.size(), 7u);
  EXPECT_GT(statistics.loss, 1);
  for (const LayerGradients& layer : statistics.layers) {
    const Recorder::Layer& known = reference.at(layer.name);
    const int64_t width = known.in + 1;
    ASSERT_EQ(layer.output_adaptive.count, tiny.tokens.samples);
    ASSERT_EQ(layer.guided.size(), size_t(groups));
    ASSERT_EQ(layer.first_row(groups), known.out);
    for (int64_t a = 0; a < width; a += 3)
      for (int64_t b : {int64_t(0), a, width - 1}) {
        const Sum oac = output_adaptive(known, tiny.tokens, a, b);
        ASSERT_NEAR(layer.output_adaptive.sum[size_t(a * width + b)], oac.value,
                    kRound32 * double(2 * tiny.tokens.length + known.out + 4) * oac.magnitude)
            << layer.name;
        for (int64_t group = 0; group < groups; ++group) {
          const ExtendedMoment& moment = layer.guided[size_t(group)];
          const Sum sum = guided(known, layer.first_row(group), layer.first_row(group + 1), a, b);
          ASSERT_EQ(moment.count, tiny.tokens.samples * tiny.tokens.length);
          ASSERT_NEAR(moment.sum[size_t(a * width + b)], sum.value,
                      kRound32 * double(moment.count + 4) * sum.magnitude)
              << layer.name;
        }
      }
  }
}
INSTANTIATE_TEST_SUITE_P(, GradientStatisticsOf, testing::Values("plain", "post_norm_350m", "gelu"),
                         [](const auto& one) { return one.param; });

// A moved stream is stored in binary16, which a sweep does not see: only where the blocks before change nothing
// must both agree to the bit.
TEST(GradientStatistics, OneSweepOverAllBlocksGivesTheBitsOfOnePassEach) {
  const GradientKinds kinds{.output_adaptive = true, .guided_groups = 2};
  for (int64_t first = 0; first < 3; ++first) {
    SCOPED_TRACE(first);
    Tiny all("plain", 0), one("plain", 0, 3);  // and of another number of threads
    ASSERT_EQ(all.model->facts().layers, 3);
    all.make_identities(first);
    one.make_identities(first);
    one.advance(first);
    GradientRequest request = all.request(0, kinds);
    request.observed = 3;
    const GradientStatistics whole = gather_gradients(request);
    EXPECT_EQ(whole.layers.size(), 6u * 3u);
    const GradientStatistics part = gather_gradients(one.request(first, kinds));
    EXPECT_EQ(part.loss, whole.loss);
    EXPECT_EQ(part.layers.size(), 6u);
    for (const LayerGradients& layer : part.layers) {
      const LayerGradients* same = whole.find(layer.name);
      ASSERT_NE(same, nullptr) << layer.name;
      EXPECT_GT(layer.output_adaptive.sum[0], 0) << layer.name;
      EXPECT_EQ(layer.output_adaptive.sum, same->output_adaptive.sum) << layer.name;
      for (size_t group = 0; group < 2; ++group) EXPECT_EQ(layer.guided[group].sum, same->guided[group].sum);
    }
  }
}

TEST(GradientStatistics, TheFirstBlockMayBeStoodInFor) {
  Tiny tiny("plain", 1);
  GradientRequest request = tiny.request(1, {.guided_groups = 1});
  const GradientStatistics original = gather_gradients(request);
  const std::unique_ptr<nn::Block> copy = tiny.model->make_block(1);
  request.block = copy.get();
  EXPECT_EQ(gather_gradients(request).loss, original.loss);
  nn::Linear& layer = copy->branches.back()->contract();
  layer.bias = Tensor::from_floats(*tiny.backend, std::vector<float>(size_t(layer.out_features()), 0.3f),
                                   {layer.out_features()});
  EXPECT_NE(gather_gradients(request).loss, original.loss);
}

// What is left of their gradient is rounding, and no direction for centring.
TEST(GradientStatistics, KeysHaveNoBiasToTakeOut) {
  Tiny tiny("plain", 0);
  GradientRequest request = tiny.request(0, {.output_adaptive = true});
  request.observed = tiny.model->facts().layers;
  const GradientStatistics gathered = gather_gradients(request);
  ASSERT_FALSE(gathered.layers.empty());
  for (const LayerGradients& layer : gathered.layers) {
    const std::vector<double> mean = layer.output_adaptive.mean();
    const bool zeros = std::all_of(mean.begin(), mean.end(), [](double value) { return value == 0; });
    EXPECT_EQ(zeros, layer.name.ends_with("k_proj")) << layer.name;
  }
}

TEST(GradientStatistics, HeadAlone) {
  Tiny tiny("plain", 3);
  GradientRequest request = tiny.request(tiny.model->facts().layers, {.guided_groups = 1});
  request.head = true;
  const GradientStatistics statistics = gather_gradients(request);
  ASSERT_EQ(statistics.layers.size(), 1u);
  EXPECT_EQ(statistics.layers[0].name, tiny.model->lm_head().name);
}

TEST(GradientStatistics, MoreGroupsThanRowsAreRefused) {
  Tiny tiny("plain", 0);
  EXPECT_THROW(gather_gradients(tiny.request(0, {.guided_groups = 37})), Error);
}

ExtendedMoment random_moment(int64_t features) {
  test::Random random(9);
  const int64_t width = features + 1, rows = 40;
  ExtendedMoment moment{features, std::vector<double>(size_t(width * width)), rows};
  for (int64_t t = 0; t < rows; ++t) {
    const std::vector<float> x = random.floats(width, -0.5f, 1);
    for (int64_t i = 0; i < width; ++i)
      for (int64_t j = 0; j < width; ++j)
        moment.sum[size_t(i * width + j)] += double(x[size_t(i)]) * double(x[size_t(j)]);
  }
  return moment;
}

// For any weight error d: what is left of the form once the bias moves by its best amount, -d·mean.
TEST(ExtendedMoment, CentredIsTheFormWithTheBestBias) {
  const int64_t features = 6, width = features + 1;
  const ExtendedMoment moment = random_moment(features);
  const std::vector<double> mean = moment.mean();
  const std::vector<double> plain = moment.curvature(false).h, centred = moment.curvature(true).h;
  test::Random random(2);
  for (int trial = 0; trial < 5; ++trial) {
    std::vector<double> d;
    for (float value : random.floats(width)) d.push_back(double(value));
    const auto form = [&](double bias) {
      d.back() = bias;
      double total = 0;
      for (int64_t i = 0; i < width; ++i)
        for (int64_t j = 0; j < width; ++j)
          total += d[size_t(i)] * moment.sum[size_t(i * width + j)] * d[size_t(j)];
      return total / double(moment.count);
    };
    const auto form_of = [&](const std::vector<double>& h) {
      double total = 0;
      for (int64_t i = 0; i < features; ++i)
        for (int64_t j = 0; j < features; ++j)
          total += d[size_t(i)] * h[size_t(i * features + j)] * d[size_t(j)];
      return total;
    };
    double shift = 0;
    for (int64_t i = 0; i < features; ++i) shift -= d[size_t(i)] * mean[size_t(i)];
    EXPECT_NEAR(form(0), form_of(plain), 1e-12);
    EXPECT_NEAR(form(shift), form_of(centred), 1e-12);
    EXPECT_GT(form(shift + 0.1), form(shift));
    EXPECT_GT(form(shift - 0.1), form(shift));
  }
}

TEST(ExtendedMoment, InputsThatNeverMatterAreDead) {
  ExtendedMoment moment = random_moment(3);
  for (int64_t i = 0; i < 4; ++i) moment.sum[size_t(i * 4 + 1)] = moment.sum[size_t(4 + i)] = 0;
  EXPECT_EQ(moment.curvature(true).dead, (std::vector<uint8_t>{0, 1, 0}));
}

TEST(ExtendedMoment, AFormOfZerosIsPlainRounding) {
  const ExtendedMoment moment{2, std::vector<double>(9), 5};
  EXPECT_EQ(moment.mean(), (std::vector<double>{0, 0}));
  EXPECT_EQ(moment.curvature(true).h, (std::vector<double>{1, 0, 0, 1}));
  EXPECT_EQ(moment.curvature(true).dead, (std::vector<uint8_t>{0, 0}));
}

// One token's input, scaled by its weights: the bias makes up for whatever rounding does to it.
TEST(ExtendedMoment, OneInputAloneIsPlainRoundingOnceCentred) {
  const int64_t features = 3, width = features + 1;
  const double x[] = {0.3, -1.7, 0.9, 1};
  ExtendedMoment moment{features, std::vector<double>(size_t(width * width)), 4};
  for (int64_t i = 0; i < width; ++i)
    for (int64_t j = 0; j < width; ++j)
      moment.sum[size_t(i * width + j)] = double(float(7e-5 * x[i] * x[j])) * (1 + 1e-8 * double(i + j));
  EXPECT_EQ(moment.curvature(true).h, (std::vector<double>{1, 0, 0, 0, 1, 0, 0, 0, 1}));
  EXPECT_NE(moment.curvature(false).h[1], 0);
}

}  // namespace
}  // namespace ballast
