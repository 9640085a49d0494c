// What a client asked for: the JSON of the three completion routes as one checked value.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "engine/io/tokenizer.h"
#include "engine/runtime/sequence.h"
#include "engine/server/chat_template.h"

namespace ballast::server {

/// Which API the request speaks: OpenAI's /v1/completions and /v1/chat/completions, llama-server's /completion.
enum class Dialect : uint8_t { completions, chat, llama };

/// What requests are checked against.
struct ApiLimits {
  const Tokenizer* tokenizer = nullptr;
  std::string model;         ///< the name it is served under
  int64_t context = 0;       ///< positions of prompt and answer together
  int64_t usable_vocab = 0;  ///< ids from here on have no text
  const ChatTemplate* chat = nullptr;
  bool strict_model = false;  ///< refuse other names than `model`
  int max_logprobs = 5;
  int64_t max_choices = 128;  ///< prompts times n
  size_t max_stops = 16, max_stop_bytes = 256;
};

struct Prompt {
  std::vector<int32_t> ids;
  std::string text;              ///< what `echo` shows
  std::vector<int64_t> offsets;  ///< of each token, in characters of `text`; filled for `echo`
};

struct CompletionRequest {
  Dialect dialect = Dialect::completions;
  std::vector<Prompt> prompts;
  int64_t n = 1, best_of = 1;
  bool echo = false, stream = false, include_usage = false, return_token_ids = false;
  int logprobs = -1;  ///< likeliest tokens to report beside the chosen one; -1: none
  std::vector<std::string> stop;
  std::optional<uint64_t> seed;
  GenerationParams params;           ///< max_tokens: -1 while it is not given and differs between prompts
  std::vector<std::string> unknown;  ///< fields that were ignored

  int64_t choices() const { return int64_t(prompts.size()) * n; }
  /// Sequences to run: best_of for every prompt.
  int64_t sequences() const { return int64_t(prompts.size()) * best_of; }
};

/// ApiError naming the field at fault; `null` is the same as absent. Tokenizes: not for the I/O thread.
CompletionRequest parse_completion(Dialect dialect, std::string_view body, const ApiLimits& limits);

/// Tokens that may follow `prompt`: what was asked for, or what the context leaves. ApiError when it is too long.
int64_t tokens_to_generate(const CompletionRequest& request, const Prompt& prompt, const ApiLimits& limits);

}  // namespace ballast::server
