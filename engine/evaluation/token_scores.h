// What one row of logits says about the token that came next, alone or against a reference row.
#pragma once

#include <cstdint>
#include <span>

namespace ballast {

struct TokenScore {
  double nll = 0;         ///< −log softmax(logits)[target], natural logarithm
  int32_t likeliest = 0;  ///< arg max; the smaller id on a tie
};
/// Sums in binary64.
TokenScore score_token(std::span<const float> logits, int32_t target);

struct ComparedScore {
  TokenScore model, reference;
  double kl = 0;  ///< Σ_i p_i·log(p_i / q_i), p the reference's distribution, q the model's; never below 0
};
/// Both rows have the same length.
ComparedScore compare_token(std::span<const float> logits, std::span<const float> reference, int32_t target);

}  // namespace ballast
