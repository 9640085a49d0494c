#include "quantize/bit_allocation.h"

#include <algorithm>

#include "quantize/calibration.h"
#include "quantize/gradient_statistics.h"
#include "quantize/methods.h"
#include "quantize/source_weight.h"

namespace ballast {
namespace {

constexpr int kWidths[] = {2, 3, 4, 8};
constexpr int64_t kSamples = 32;  // sensitivities need less data than codes

class WidthPlanner {
 public:
  explicit WidthPlanner(const WidthJob& job) : job_(job), tokens_(job.tokens.first(kSamples)) {}

  std::vector<WidthProblem> problems();

 private:
  void measure(const nn::Linear& layer, const GradientStatistics& gradients, bool head);
  GridOptions grid_of(const nn::Linear& layer, int bits, bool head) const;

  const WidthJob& job_;
  CalibrationTokens tokens_;
  std::vector<WidthProblem> problems_;
};

std::vector<WidthProblem> WidthPlanner::problems() {
  nn::Model& model = job_.model;
  const int64_t layers = model.facts().layers;
  HiddenStream stream(job_.backend, model, tokens_);
  for (int64_t index = 0; index <= layers; ++index) {
    const bool head = index == layers;
    const GradientStatistics gradients = gather_gradients({.backend = job_.backend,
                                                           .model = model,
                                                           .stream = stream,
                                                           .first = index,
                                                           .observed = head ? 0 : 1,
                                                           .head = head,
                                                           .kinds = {.guided_groups = 1}});
    if (head) {
      measure(model.lm_head(), gradients, true);
      break;
    }
    nn::Block& block = model.block(index);
    for (const auto& branch : block.branches) {
      for (const nn::Linear* layer : branch->expand()) measure(*layer, gradients, false);
      measure(branch->contract(), gradients, false);
    }
    stream.for_each_part([&](const HiddenStream::Part& part) { block.forward(part.context, part.hidden); });
    model.unload_block(index);
    job_.progress(index + 1, layers + 1);
  }
  return std::move(problems_);
}

// `bits` 0: the width that an override or --head-bits has fixed, if any.
GridOptions WidthPlanner::grid_of(const nn::Linear& layer, int bits, bool head) const {
  Recipe recipe = job_.recipe;
  recipe.layer_bits[layer.name] = bits ? bits : -1;
  if (head && bits) recipe.head_bits = bits;
  return head ? recipe.head_grid(layer.name, layer.in_features())
              : recipe.grid_for(layer.name, layer.in_features());
}

void WidthPlanner::measure(const nn::Linear& layer, const GradientStatistics& gradients, bool head) {
  const LayerGradients* found = gradients.find(layer.name);
  CHECK(found && !found->guided.empty());
  const int64_t in = layer.in_features(), out = layer.out_features();
  const bool pinned = head ? job_.recipe.head_bits != 0 : grid_of(layer, 0, false).bits != -1;
  const bool centred = job_.recipe.centres_inputs();
  const Method& method = method_named(job_.recipe.method);
  LayerInput input(job_.backend, found->guided.front().curvature(centred), {.damping = job_.recipe.damping},
                   layer.name);
  const std::vector<float> weight = source_weight(job_.source, layer);
  WidthProblem problem{layer.name, double(in) * double(out), {}};
  for (const int bits : kWidths) {
    const GridOptions grid = grid_of(layer, pinned ? 0 : bits, head);
    if (grid.bits == 0) return;  // left in float
    const LayerSolution solution = method.solve(job_.backend, {.name = layer.name,
                                                               .out_features = out,
                                                               .in_features = in,
                                                               .weight = weight,
                                                               .grid = grid,
                                                               .options = job_.recipe.options,
                                                               .input = &input});
    const double cost = quadratic_form(job_.backend, symmetric_view(input.curvature().h, in),
                                       weight_error(job_.backend, weight, solution.matrix));
    problem.choices.push_back({grid.bits, bits_per_weight(solution.matrix) * problem.weights, cost});
    if (pinned) break;
  }
  problems_.push_back(std::move(problem));
}

}  // namespace

std::vector<size_t> allocate_widths(const std::vector<WidthProblem>& problems, double target) {
  double weights = 0, used = 0;
  for (const WidthProblem& problem : problems) {
    CHECK(!problem.choices.empty());
    weights += problem.weights;
    used += problem.choices.front().stored_bits;
  }
  const double budget = target * weights;
  if (used > budget * (1 + 1e-12))
    throw Error(str("--target-bits is ", target, ", but the smallest widths already take ", used / weights,
                    " bits per weight with their scales and zero points"));
  std::vector<size_t> chosen(problems.size());
  for (;;) {
    double best = 0;
    size_t best_module = problems.size(), best_choice = 0;
    for (size_t m = 0; m < problems.size(); ++m) {
      const WidthChoice& now = problems[m].choices[chosen[m]];
      for (size_t c = chosen[m] + 1; c < problems[m].choices.size(); ++c) {
        const WidthChoice& next = problems[m].choices[c];
        const double more = next.stored_bits - now.stored_bits, gain = (now.cost - next.cost) / more;
        if (used + more <= budget * (1 + 1e-12) && gain > best) best = gain, best_module = m, best_choice = c;
      }
    }
    if (best_module == problems.size()) return chosen;
    used += problems[best_module].choices[best_choice].stored_bits -
            problems[best_module].choices[chosen[best_module]].stored_bits;
    chosen[best_module] = best_choice;
  }
}

std::vector<WidthProblem> width_problems(const WidthJob& job) {
  return WidthPlanner(job).problems();
}

std::map<std::string, int> choose_widths(const WidthJob& job) {
  const std::vector<WidthProblem> problems = width_problems(job);
  const std::vector<size_t> chosen = allocate_widths(problems, job.recipe.target_bits);
  std::map<std::string, int> widths;
  for (size_t i = 0; i < problems.size(); ++i)
    widths[problems[i].module] = problems[i].choices[chosen[i]].bits;
  return widths;
}

}  // namespace ballast
