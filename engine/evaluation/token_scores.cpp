#include "engine/evaluation/token_scores.h"

#include <algorithm>
#include <cmath>

#include "kernels/check.h"

namespace ballast {
namespace {

/// log Σ exp(logits) = top + log_sum; the two stay apart so that log-probabilities lose nothing to a large
/// top.
struct Normalizer {
  double top, log_sum;
  int32_t likeliest;

  double log_probability(float logit) const { return (double(logit) - top) - log_sum; }
};

Normalizer normalizer(std::span<const float> logits) {
  const auto top = std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double(logit) - double(*top));
  return {double(*top), std::log(sum), int32_t(top - logits.begin())};
}

}  // namespace

TokenScore score_token(std::span<const float> logits, int32_t target) {
  CHECK(target >= 0 && size_t(target) < logits.size());
  const Normalizer total = normalizer(logits);
  return {-total.log_probability(logits[size_t(target)]), total.likeliest};
}

ComparedScore compare_token(std::span<const float> logits, std::span<const float> reference, int32_t target) {
  CHECK(logits.size() == reference.size());
  CHECK(target >= 0 && size_t(target) < logits.size());
  const Normalizer q = normalizer(logits), p = normalizer(reference);
  double kl = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double log_p = p.log_probability(reference[i]);
    const double probability = std::exp(log_p);
    if (probability > 0) kl += probability * (log_p - q.log_probability(logits[i]));
  }
  // Rounding can leave two nearly equal rows a little below zero; a NaN must stay one.
  if (kl < 0) kl = 0;
  return {.model = {-q.log_probability(logits[size_t(target)]), q.likeliest},
          .reference = {-p.log_probability(reference[size_t(target)]), p.likeliest},
          .kl = kl};
}

}  // namespace ballast
