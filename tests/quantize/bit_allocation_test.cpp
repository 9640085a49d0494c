// Widths by layer: the choice against all choices, and what a layer is said to cost.
#include "quantize/bit_allocation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "models/registry.h"
#include "quantize/calibration.h"
#include "quantize/gradient_statistics.h"
#include "quantize/methods.h"
#include "quantize/source_weight.h"
#include "tests/support/expect_error.h"
#include "tests/support/random.h"

namespace ballast {
namespace {

struct Total {
  double bits = 0, weights = 0, cost = 0;
};
Total total(const std::vector<WidthProblem>& problems, const std::vector<size_t>& chosen) {
  Total sum;
  for (size_t i = 0; i < problems.size(); ++i) {
    sum.bits += problems[i].choices.at(chosen[i]).stored_bits;
    sum.cost += problems[i].choices.at(chosen[i]).cost;
    sum.weights += problems[i].weights;
  }
  return sum;
}

// The least cost within the budget, of all choices.
double least_cost(const std::vector<WidthProblem>& problems, double target) {
  double best = INFINITY;
  std::vector<size_t> chosen(problems.size());
  const std::function<void(size_t)> from = [&](size_t module) {
    if (module == problems.size()) {
      const Total sum = total(problems, chosen);
      if (sum.bits <= target * sum.weights * (1 + 1e-12)) best = std::min(best, sum.cost);
      return;
    }
    for (chosen[module] = 0; chosen[module] < problems[module].choices.size(); ++chosen[module])
      from(module + 1);
  };
  from(0);
  return best;
}

// Layers of `weights` each, or of their own sizes where that is 0. Costs fall by about 4 per bit, as rounding errors do.
std::vector<WidthProblem> random_problems(test::Random& random, size_t count, double weights,
                                          std::initializer_list<int> widths) {
  std::vector<WidthProblem> problems;
  for (size_t i = 0; i < count; ++i) {
    WidthProblem problem{str("layer ", i), weights ? weights : double(16 * (1 + random.below(40))), {}};
    double cost = double(random.uniform(0.01f, 1));
    int before = 0;
    for (const int bits : widths) {
      if (before) cost *= std::pow(double(random.uniform(0.1f, 0.45f)), bits - before);
      before = bits;
      problem.choices.push_back({bits, (bits + 0.25) * problem.weights, cost});
    }
    problems.push_back(std::move(problem));
  }
  return problems;
}

// With layers of one size, widths a bit apart and costs that fall ever more slowly, the greedy choice is the best one.
TEST(AllocateWidths, IsTheBestOfAllWhereStepsAreEqual) {
  test::Random random(1);
  for (int trial = 0; trial < 200; ++trial) {
    const auto problems = random_problems(random, size_t(1 + random.below(7)), 64, {2, 3, 4});
    const double target = double(random.uniform(2.25f, 4.5f));
    const Total found = total(problems, allocate_widths(problems, target));
    EXPECT_LE(found.bits, target * found.weights * (1 + 1e-12));
    EXPECT_DOUBLE_EQ(found.cost, least_cost(problems, target)) << "target " << target;
  }
}

// In general it is at most one step worse: all steps before the first that does not fit belong to the best choice that
// may be split between two widths, whose cost no whole choice undercuts.
TEST(AllocateWidths, IsWithinOneStepOfTheBest) {
  test::Random random(2);
  double excess = 0, best_sum = 0;
  for (int trial = 0; trial < 200; ++trial) {
    const auto problems = random_problems(random, size_t(1 + random.below(6)), 0, {2, 3, 4, 8});
    double step = 0;
    for (const WidthProblem& problem : problems)
      for (size_t i = 0; i + 1 < problem.choices.size(); ++i)
        step = std::max(step, problem.choices[i].cost - problem.choices[i + 1].cost);
    const double target = double(random.uniform(2.25f, 8.5f));
    const std::vector<size_t> chosen = allocate_widths(problems, target);
    const Total found = total(problems, chosen);
    const double best = least_cost(problems, target);
    EXPECT_LE(found.bits, target * found.weights * (1 + 1e-12)) << "target " << target;
    EXPECT_LE(found.cost, best + step) << "target " << target;
    excess += found.cost - best, best_sum += best;
    // Nothing that still fits is left to gain.
    for (size_t module = 0; module < problems.size(); ++module) {
      std::vector<size_t> other = chosen;
      for (other[module] = 0; other[module] < problems[module].choices.size(); ++other[module]) {
        const Total changed = total(problems, other);
        EXPECT_TRUE(changed.bits > target * changed.weights * (1 + 1e-12) || changed.cost >= found.cost);
      }
    }
  }
  EXPECT_LT(excess, 0.2 * best_sum) << "far more than the steps that do not fit";
}

TEST(AllocateWidths, SpendsNothingWhereNothingIsGained) {
  const std::vector<WidthProblem> problems = {{"flat", 10, {{2, 20, 1}, {3, 30, 1}, {4, 40, 1}}},
                                              {"steep", 10, {{2, 20, 1}, {3, 30, 0.5}, {4, 40, 0.4}}}};
  EXPECT_EQ(allocate_widths(problems, 8), (std::vector<size_t>{0, 2}));
  // A step that pays only together with the next is taken with it.
  const std::vector<WidthProblem> late = {{"late", 10, {{2, 20, 1}, {3, 30, 1}, {4, 40, 0.1}}}};
  EXPECT_EQ(allocate_widths(late, 4), (std::vector<size_t>{2}));
  EXPECT_EQ(allocate_widths(late, 3), (std::vector<size_t>{0}));
}

TEST(AllocateWidths, PinnedLayersCountTowardsTheTarget) {
  const std::vector<WidthProblem> problems = {{"pinned", 10, {{8, 80, 0}}},
                                              {"free", 10, {{2, 20, 1}, {3, 30, 0.5}, {4, 40, 0.2}}}};
  EXPECT_EQ(allocate_widths(problems, 5.5), (std::vector<size_t>{0, 1}));
  EXPECT_EQ(allocate_widths(problems, 6), (std::vector<size_t>{0, 2}));
  EXPECT_TRUE(throws_with("--target-bits is 4.5, but the smallest widths already take 5 bits per weight",
                          [&] { allocate_widths(problems, 4.5); }));
}

// The tiny model `variant` before anything is quantized.
struct Tiny {
  explicit Tiny(const std::string& variant)
      : checkpoint(Checkpoint::open(std::filesystem::path(BALLAST_SOURCE_DIR) / "tests/golden/opt" / variant)),
        backend(find_backend({.device = "cpu", .threads = 1})),
        model(load_model(checkpoint, *backend)) {
    test::Random random(3);
    tokens = {6, 20, {}, "random"};
    for (int i = 0; i < 6 * 20; ++i) tokens.ids.push_back(int32_t(random.below(model->facts().vocab)));
    recipe.method = "rtn";
    recipe.compensation = Compensation::none;
    recipe.target_bits = 3.5;
  }
  WidthJob job() { return {.source = checkpoint, .backend = *backend, .model = *model, .tokens = tokens, .recipe = recipe}; }

  Checkpoint checkpoint;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<nn::Model> model;
  CalibrationTokens tokens;
  Recipe recipe;
};

const WidthProblem& problem_of(const std::vector<WidthProblem>& problems, const std::string& part) {
  for (const WidthProblem& problem : problems)
    if (problem.module.find(part) != std::string::npos) return problem;
  throw Error("no module with " + part);
}

TEST(WidthProblems, HoldEveryLayerAndTheHead) {
  Tiny tiny("plain");
  const auto problems = width_problems(tiny.job());
  ASSERT_EQ(problems.size(), 6u * 3u + 1u);
  EXPECT_EQ(problems.back().module, tiny.model->lm_head().name);
  EXPECT_EQ(problems.back().weights, 99.0 * 36.0);
  for (const WidthProblem& problem : problems) {
    ASSERT_EQ(problem.choices.size(), 4u) << problem.module;
    for (size_t i = 0; i < 4; ++i) {
      const int bits = (int[]){2, 3, 4, 8}[i];
      EXPECT_EQ(problem.choices[i].bits, bits);
      // A binary16 scale and a zero point for each row.
      const double columns = problem.module.find("fc2") != std::string::npos ? 80 : 36;
      EXPECT_NEAR(problem.choices[i].stored_bits, (bits + (16.0 + bits) / columns) * problem.weights,
                  1e-9 * problem.weights);
      if (i) {
        EXPECT_LT(problem.choices[i].cost, problem.choices[i - 1].cost) << problem.module;
      }
    }
  }
}

// Σ over rows of d·H·dᵀ with H = E[mean_j(dz_j²)·x xᵀ], from the gradients as they are and the rounded weights.
TEST(WidthProblems, CostIsTheSecondOrderTermOfTheLoss) {
  Tiny tiny("plain");
  const auto problems = width_problems(tiny.job());
  HiddenStream stream(*tiny.backend, *tiny.model, tiny.tokens);
  for (int64_t block = 0; block < 2; ++block) {
    const GradientStatistics gradients = gather_gradients({.backend = *tiny.backend,
                                                           .model = *tiny.model,
                                                           .stream = stream,
                                                           .first = block,
                                                           .kinds = {.guided_groups = 1}});
    for (const LayerGradients& layer : gradients.layers) {
      const WidthProblem& problem = problem_of(problems, layer.name);
      const int64_t in = layer.guided[0].features, width = in + 1;
      std::vector<float> weight;
      for (const auto& branch : tiny.model->block(block).branches) {
        std::vector<nn::Linear*> linears = branch->expand();
        linears.push_back(&branch->contract());
        for (const nn::Linear* linear : linears)
          if (linear->name == layer.name) weight = source_weight(tiny.checkpoint, *linear);
      }
      ASSERT_EQ(int64_t(weight.size()), in * layer.out_features);
      for (const WidthChoice& choice : problem.choices) {
        const LayerProblem wanted{.name = layer.name,
                                  .out_features = layer.out_features,
                                  .in_features = in,
                                  .weight = weight,
                                  .grid = {.bits = choice.bits, .group_size = in}};
        const auto matrix = std::get<AffineMatrix>(method_named("rtn").solve(*tiny.backend, wanted).matrix);
        double cost = 0;
        for (int64_t row = 0; row < layer.out_features; ++row) {
          const auto d = [&](int64_t i) { return double(weight[size_t(row * in + i)]) - double(matrix.value(row, i)); };
          for (int64_t i = 0; i < in; ++i)
            for (int64_t j = 0; j < in; ++j)
              cost += d(i) * layer.guided[0].sum[size_t(i * width + j)] * d(j) / double(layer.guided[0].count);
        }
        EXPECT_NEAR(choice.cost, cost, 1e-4 * cost) << layer.name << ", " << choice.bits << " bits";
      }
    }
    stream.for_each_part(
        [&](const HiddenStream::Part& part) { tiny.model->block(block).forward(part.context, part.hidden); });
  }
}

TEST(WidthProblems, PinnedLayersHaveOneChoiceAndSkippedOnesNone) {
  Tiny tiny("untied");
  tiny.recipe.head_bits = 8;
  tiny.recipe.overrides.push_back({"fc1", std::regex("fc1"), 4, 12});
  tiny.recipe.overrides.push_back({"out_proj", std::regex("out_proj"), 0, -1});
  const auto problems = width_problems(tiny.job());
  EXPECT_EQ(problems.size(), size_t(5 * tiny.model->facts().layers + 1));
  const auto& head = problem_of(problems, "lm_head").choices;
  ASSERT_EQ(head.size(), 1u);
  EXPECT_EQ(head[0].bits, 8);
  const auto& pinned = problem_of(problems, "layers.1.fc1").choices;
  ASSERT_EQ(pinned.size(), 1u);
  EXPECT_EQ(pinned[0].bits, 4);
  EXPECT_EQ(problem_of(problems, "layers.1.fc2").choices.size(), 4u);
  EXPECT_THROW(problem_of(problems, "out_proj"), Error);
  tiny.recipe.target_bits = 6;
  const auto widths = choose_widths(tiny.job());
  EXPECT_EQ(widths.size(), problems.size());
  EXPECT_EQ(widths.at(tiny.model->lm_head().name), 8);
  EXPECT_EQ(widths.at("model.decoder.layers.1.fc1"), 4);
}

}  // namespace
}  // namespace ballast
