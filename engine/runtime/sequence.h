// One text being generated.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/runtime/kv_cache.h"
#include "engine/runtime/sampler.h"

namespace ballast {

enum class FinishReason : uint8_t { none, stop, length, cancelled };
const char* name_of(FinishReason reason);

struct GenerationParams {
  SamplingParams sampling;
  int64_t max_tokens = 128;  ///< generated tokens; clipped to what the context has room for
  int64_t min_tokens = 0;    ///< the end token cannot be chosen before
  bool ignore_eos = false;   ///< the end token is never chosen
  std::vector<int32_t> stop_token_ids;

  void check() const;
};

struct Sequence {
  /// `prompt` must not be empty. `on_token` runs after each generated token, on the engine's thread; false
  /// finishes the sequence with reason `stop`.
  using OnToken = std::function<bool(const Sequence&, const SampledToken&)>;
  Sequence(std::vector<int32_t> prompt, GenerationParams generation, OnToken callback);

  std::vector<int32_t> tokens;  ///< prompt, then what was generated
  int64_t prompt_tokens;
  GenerationParams params;
  OnToken on_token;
  Sampler sampler;
  PageTable pages;
  int64_t computed = 0;  ///< tokens whose keys and values are in the cache
  FinishReason finish = FinishReason::none;
  bool cancel_requested = false;

  int64_t generated() const { return int64_t(tokens.size()) - prompt_tokens; }
  bool finished() const { return finish != FinishReason::none; }
};

}  // namespace ballast
