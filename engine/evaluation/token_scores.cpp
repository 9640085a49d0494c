#include "engine/evaluation/token_scores.h"

#include <algorithm>
#include <cmath>

#include "kernels/check.h"

namespace ballast {
namespace {

struct LogSumExp {
  double value;
  int32_t likeliest;
};

LogSumExp log_sum_exp(std::span<const float> logits) {
  const auto top = std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double(logit) - double(*top));
  return {double(*top) + std::log(sum), int32_t(top - logits.begin())};
}

}  // namespace

TokenScore score_token(std::span<const float> logits, int32_t target) {
  CHECK(target >= 0 && size_t(target) < logits.size());
  const LogSumExp total = log_sum_exp(logits);
  return {total.value - double(logits[size_t(target)]), total.likeliest};
}

ComparedScore compare_token(std::span<const float> logits, std::span<const float> reference, int32_t target) {
  CHECK(logits.size() == reference.size());
  CHECK(target >= 0 && size_t(target) < logits.size());
  const LogSumExp q = log_sum_exp(logits), p = log_sum_exp(reference);
  double kl = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double log_p = double(reference[i]) - p.value;
    const double probability = std::exp(log_p);
    if (probability > 0) kl += probability * (log_p - (double(logits[i]) - q.value));
  }
  ComparedScore score{.model = {q.value - double(logits[size_t(target)]), q.likeliest},
                      .reference = {p.value - double(reference[size_t(target)]), p.likeliest},
                      .kl = kl};
  // Rounding can leave two equal rows a little below zero; a NaN must stay one.
  if (score.kl < 0) score.kl = 0;
  return score;
}

}  // namespace ballast
