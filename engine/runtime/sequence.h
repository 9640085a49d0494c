// One text being generated.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/runtime/kv_cache.h"
#include "engine/runtime/sampler.h"

namespace ballast {

enum class FinishReason : uint8_t { none, stop, length, cancelled, failed };
const char* name_of(FinishReason reason);

struct GenerationParams {
  SamplingParams sampling;
  int64_t max_tokens = 128;  ///< generated tokens; clipped to what the context has room for
  int64_t min_tokens = 0;    ///< the end token cannot be chosen before
  bool ignore_eos = false;   ///< the end token is never chosen
  std::vector<int32_t> stop_token_ids;
  /// Report the log-probability of every prompt token but the first, and this many likeliest tokens in its
  /// place; -1: none. With max_tokens 0 the sequence ends when the prompt is scored.
  int prompt_logprobs = -1;
  /// Pages computed for others may be used, and ours by others, among sequences of equal salt. Prompts that are
  /// to be scored are computed from their beginning.
  bool share_prefix = true;
  uint64_t prefix_salt = 0;

  void check() const;
};

struct Sequence {
  /// `prompt` must not be empty. `on_token` runs on the engine's thread after each generated token, and with
  /// prompt_logprobs, before those, after each prompt token from the second on, in order; false finishes the
  /// sequence with reason `stop`.
  using OnToken = std::function<bool(const Sequence&, const SampledToken&)>;
  Sequence(std::vector<int32_t> prompt, GenerationParams generation, OnToken callback);

  std::vector<int32_t> tokens;  ///< prompt, then what was generated
  int64_t prompt_tokens;
  GenerationParams params;
  OnToken on_token;
  Sampler sampler;
  PageTable pages;
  int64_t computed = 0;   ///< tokens whose keys and values are in the cache
  int64_t shared = 0;     ///< of the prompt's, those that another sequence had computed
  int64_t scored = 1;     ///< prompt tokens with a log-probability reported; the first has none
  int64_t published = 0;  ///< pages that others can find
  uint64_t owner = 0;     ///< whose it is: owners take turns
  /// A sequence with the same prompt that is to compute it first; may be null.
  std::shared_ptr<const Sequence> leader;
  FinishReason finish = FinishReason::none;
  bool cancel_requested = false;

  int64_t generated() const { return int64_t(tokens.size()) - prompt_tokens; }
  bool finished() const { return finish != FinishReason::none; }
  bool scores_prompt() const { return params.prompt_logprobs >= 0; }
  bool shares_prefix() const { return params.share_prefix && !scores_prompt(); }
  /// Rows that must run before there is something new to sample or to finish with.
  int64_t rows_left() const { return int64_t(tokens.size()) - computed - (params.max_tokens == 0 ? 1 : 0); }
};

}  // namespace ballast
