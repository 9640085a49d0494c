#include "engine/runtime/sequence.h"

namespace ballast {

const char* name_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::none:
      return "none";
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
    case FinishReason::cancelled:
      return "cancelled";
    case FinishReason::failed:
      return "failed";
  }
  return "?";
}

void GenerationParams::check() const {
  sampling.check();
  if (max_tokens < 0) throw Error(str("max_tokens is ", max_tokens, ", expected 0 or more"));
  if (min_tokens < 0 || min_tokens > max_tokens)
    throw Error(str("min_tokens is ", min_tokens, ", expected 0 to max_tokens, ", max_tokens));
  if (prompt_logprobs < -1 || prompt_logprobs > kMaxLogprobs)
    throw Error(str("prompt_logprobs is ", prompt_logprobs, ", expected 0 to ", kMaxLogprobs));
}

Sequence::Sequence(std::vector<int32_t> prompt, GenerationParams generation, OnToken callback)
    : tokens(std::move(prompt)),
      prompt_tokens(int64_t(tokens.size())),
      params(std::move(generation)),
      on_token(std::move(callback)),
      sampler(params.sampling) {
  if (tokens.empty()) throw Error("the prompt has no tokens");
  params.check();
}

}  // namespace ballast
