// From logits to the next token.
#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "kernels/ops/choose_tokens.h"

namespace ballast {

inline constexpr int kMaxLogprobs = 1000;

/// Applied in this order: repetition penalty, presence and frequency penalties, logit bias, temperature,
/// top-k, top-p, min-p. Neutral values switch a step off.
struct SamplingParams {
  double temperature = 1;  ///< 0: greedy; at most 100
  int64_t top_k = 0;       ///< 0: all
  double top_p = 1;        ///< (0, 1]
  double min_p = 0;        ///< [0, 1]: drops tokens less likely than min_p times the likeliest
  double repetition_penalty =
      1;  ///< > 0: divides positive and multiplies negative logits of seen tokens (arXiv 1909.05858)
  double presence_penalty = 0;   ///< [-2, 2]: subtracted once for tokens generated before
  double frequency_penalty = 0;  ///< [-2, 2]: subtracted per occurrence among the generated tokens
  std::vector<std::pair<int32_t, double>> logit_bias;  ///< added to a token's logit; [-100, 100]
  uint64_t seed = 0;
  int logprobs = -1;  ///< report the log-probabilities of this many likeliest tokens; -1: none

  /// Error naming the first field that is out of range or not finite.
  void check() const;
};

struct SampledToken {
  int32_t id = 0;
  float logprob = 0;  ///< of the unmodified distribution; set when logprobs >= 0
  std::vector<std::pair<int32_t, float>>
      top;  ///< likeliest tokens of the unmodified distribution, best first
};

/// Log-probability of token `id` and the `count` likeliest tokens, of the distribution over `logits`. Ties go to
/// the lower id; the chosen token's value and its value among the likeliest are the same float.
SampledToken score(std::span<const float> logits, int32_t id, int count);

class Sampler {
 public:
  explicit Sampler(const SamplingParams& params) : params_(params), random_(params.seed) {}

  /// `logits`: one row, of which only the first `usable` are real tokens and `banned` (if >= 0) must not be
  /// chosen. `tokens` is the whole sequence so far, of which the first `prompt` tokens were given.
  SampledToken sample(std::span<const float> logits, int64_t usable, int32_t banned,
                      std::span<const int32_t> tokens, int64_t prompt);

  // The same without the logits being seen, but for those of some candidates: temperature, top-k, top-p and min-p. The
  // tokens are those of sample(), as far as the rounding of f64 sums lets them.

  /// What a device is to do for the next token; nothing where only sample() will do: for log-probabilities, penalties,
  /// biases of logits and more than ChooseTokens::kMostCandidates of top-k.
  std::optional<TokenChoice> choice(int32_t banned);
  /// The token, from what came of choice(); nothing where the candidates do not reach as far as top-p and min-p: then
  /// sample() is to be asked, and has the random numbers that it would have had.
  std::optional<SampledToken> choose_among(const ChosenToken& chosen, std::span<const Candidate> candidates,
                                           int64_t usable);

 private:
  int32_t choose();
  int32_t draw(double total);
  double fraction();
  double weight(float logit, float top) const;
  bool keeps_likeliest() const { return params_.top_p < 1 || params_.min_p > 0; }
  bool keep_likeliest(double& total);

  SamplingParams params_;
  std::mt19937_64 random_;
  std::vector<std::pair<float, int32_t>> scored_;  ///< (logit, id), ids ascending at first
  std::vector<double> weights_;                    ///< of scored_, the likeliest 1
};

}  // namespace ballast
