// The next token of every row, or the likeliest tokens to choose it from, without the logits leaving the device.
//
// With l the first `usable` logits of a row (NaN counts as −∞, and so does l[banned]), top = max l, ties to the lower id:
//
//   candidates 0, temperature 0   token = argmax l
//   candidates 0, temperature T   w_i = exp((l_i − top) / T) in f64; token = the first i with Σ_{j ≤ i} w_j > fraction · Σ w
//   candidates K                  the K likeliest tokens and Σ w (T > 0)
//
// Σ is over ids in ascending order, up to the rounding of f64 sums.
#pragma once

#include <span>

#include "kernels/view.h"

namespace ballast {

struct TokenChoice {
  double temperature = 0;  ///< [0, 100]
  double fraction = 0;     ///< [0, 1), a random number
  int32_t banned = -1;     ///< a token that must not be chosen, or -1
  int32_t candidates = 0;  ///< at most ChooseTokens::kMostCandidates

  bool operator==(const TokenChoice&) const = default;
};

/// A token and its logit.
struct Candidate {
  float logit;
  int32_t id;
};

struct ChosenToken {
  int32_t token = -1;  ///< with candidates 0
  float top = 0;       ///< the largest logit
  double total = 0;    ///< Σ w; 0 where the temperature is
};

struct ChooseTokens {
  static constexpr int64_t kMostCandidates = 1024;

  TensorView logits;  ///< f32 [rows, vocab]
  int64_t usable = 0;
  std::span<const TokenChoice> choices;  ///< one for each row
  std::span<ChosenToken> chosen;         ///< one for each row
  std::span<Candidate>
      candidates;  ///< [rows, kMostCandidates]: min(K, usable) of each row, in ascending order of ids

  void check() const {
    DimChecker dims("choose_tokens");
    dims.match(logits, "logits", {"rows", "vocab"});
    dims.dtype(logits, "logits", {DType::f32});
    const int64_t rows = logits.shape[0];
    CHECK(usable > 0 && usable <= logits.shape[1], "choose_tokens: ", usable, " of ", logits.shape[1],
          " tokens");
    CHECK(int64_t(choices.size()) == rows && int64_t(chosen.size()) == rows);
    for (const TokenChoice& choice : choices) {
      CHECK(choice.candidates >= 0 && choice.candidates <= kMostCandidates, choice.candidates, " candidates");
      CHECK(choice.candidates == 0 || int64_t(candidates.size()) >= rows * kMostCandidates);
    }
  }
};

}  // namespace ballast
