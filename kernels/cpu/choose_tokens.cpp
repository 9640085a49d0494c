#include "kernels/ops/choose_tokens.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/cpu_backend.h"

namespace ballast {
namespace {

bool likelier(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

ChosenToken choose(std::span<const float> logits, const TokenChoice& choice, Candidate* candidates) {
  std::vector<Candidate> all;
  for (int32_t id = 0; id < int32_t(logits.size()); ++id) {
    const float logit = logits[size_t(id)];
    all.push_back({std::isnan(logit) || id == choice.banned ? -INFINITY : logit, id});
  }
  const Candidate best = *std::min_element(all.begin(), all.end(), likelier);
  ChosenToken chosen{.token = best.id, .top = best.logit};
  std::vector<double> weights;
  for (const Candidate& at : all) {
    if (choice.temperature == 0) break;
    const double weight = std::exp((double(at.logit) - double(best.logit)) / choice.temperature);
    chosen.total += weights.emplace_back(std::isnan(weight) ? 0 : weight);
  }
  if (choice.candidates > 0) {
    const auto end = all.begin() + std::min(std::ptrdiff_t(choice.candidates), std::ptrdiff_t(all.size()));
    std::partial_sort(all.begin(), end, all.end(), likelier);
    std::sort(all.begin(), end, [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
    std::copy(all.begin(), end, candidates);
    return chosen;
  }
  double target = choice.fraction * chosen.total;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (weights[i] == 0) continue;
    chosen.token = int32_t(i);
    if (target < weights[i]) break;
    target -= weights[i];
  }
  return chosen;
}

}  // namespace

void CpuBackend::run(const ChooseTokens& op) {
  op.check();
  pool_.parallel(op.logits.shape[0], [&](int, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const TokenChoice& choice = op.choices[size_t(row)];
      Candidate* const to =
          choice.candidates > 0 ? op.candidates.data() + row * ChooseTokens::kMostCandidates : nullptr;
      op.chosen[size_t(row)] = choose({op.logits.row(row), size_t(op.usable)}, choice, to);
    }
  });
}

}  // namespace ballast
