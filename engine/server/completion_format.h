// Answers in the words of each API.
#pragma once

#include "engine/server/completion_request.h"

namespace ballast::server {

/// A token as answers report it.
struct TokenRecord {
  int32_t id = 0;
  bool scored = false;  ///< false for the first of a prompt: nothing comes before it
  float logprob = 0;
  int64_t text_offset = 0;  ///< in characters
  std::vector<std::pair<int32_t, float>> top;
};

/// Text and tokens of one choice, all of them or what is new since the last piece of a stream.
struct Piece {
  std::string text;
  std::vector<TokenRecord> tokens;  ///< with `echo` and logprobs those of the prompt first
  FinishReason finish = FinishReason::none;
  bool by_stop_string = false;
  bool first = true;  ///< nothing of this choice came before
};

struct Usage {
  int64_t prompt_tokens = 0, completion_tokens = 0, cached_tokens = 0;
};

/// Seconds from the request's arrival.
struct Timing {
  double first_token = 0, last_token = 0;
};

class CompletionFormat {
 public:
  /// Borrows request and tokenizer.
  CompletionFormat(const CompletionRequest& request, const Tokenizer& tokenizer, std::string model,
                   std::string id, std::string fingerprint);

  /// The whole answer; `choices` in the order of their index.
  nlohmann::json whole(const std::vector<Piece>& choices, const Usage& usage, const Timing& timing) const;
  /// One piece of a stream as a server-sent event; several for the first piece of a chat.
  std::string piece(int64_t index, const Piece& piece, const Usage& usage, const Timing& timing) const;
  /// What ends a stream.
  std::string ending(const Usage& usage) const;

  /// A token's text; bytes that are no whole characters as `bytes:\xe2\x82`, so that different tokens differ.
  static std::string token_text(const Tokenizer& tokenizer, int32_t id);

 private:
  nlohmann::json envelope(const char* object) const;
  nlohmann::json choice(int64_t index, const Piece& piece) const;
  nlohmann::json chat_choice(int64_t index, const Piece& piece, bool delta) const;
  nlohmann::json llama(int64_t index, const Piece& piece, bool last, const Usage& usage,
                       const Timing& timing) const;
  nlohmann::json logprobs(const std::vector<TokenRecord>& tokens) const;
  /// As the chat dialect lists tokens; llama-server's has their ids as well.
  nlohmann::json token_list(const std::vector<TokenRecord>& tokens, bool with_ids) const;

  const CompletionRequest& request_;
  const Tokenizer& tokenizer_;
  std::string model_, id_, fingerprint_;
  int64_t created_;
};

nlohmann::json usage_json(const Usage& usage);
/// `data: …` and an empty line.
std::string sse_event(const nlohmann::json& value);

}  // namespace ballast::server
