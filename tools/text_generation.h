// One sequence together with its text: decoding, stop strings, times.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/runtime/engine.h"
#include "engine/runtime/text_stream.h"

namespace ballast {

class TextGeneration {
 public:
  /// Called with text as it becomes certain: whole characters, never part of a stop string.
  using OnText = std::function<void(std::string_view)>;
  TextGeneration(const Tokenizer& tokenizer, std::vector<int32_t> prompt, GenerationParams params,
                 std::vector<std::string> stop, OnText on_text = {});
  TextGeneration(const TextGeneration&) = delete;
  TextGeneration& operator=(const TextGeneration&) = delete;

  /// Hand it to an Engine, which must not outlive this object while the sequence runs.
  const std::shared_ptr<Sequence>& sequence() const { return sequence_; }
  /// After the sequence finished: shows what was held back.
  void finish();

  const std::string& text() const { return text_; }
  std::vector<int32_t> ids() const {
    return {sequence_->tokens.begin() + sequence_->prompt_tokens, sequence_->tokens.end()};
  }
  const std::vector<SampledToken>& tokens() const { return tokens_; }
  /// Seconds from creation to the first token, and from the first token to the last.
  double prompt_seconds() const { return seconds(start_, first_); }
  double decode_seconds() const { return seconds(first_, last_); }
  /// Tokens after the first per second; 0 when there are none.
  double decode_rate() const;
  double prompt_rate() const;

  /// text, token_ids, finish_reason, prompt_tokens, completion_tokens, and logprobs where they were asked
  /// for.
  nlohmann::json json() const;

 private:
  using Clock = std::chrono::steady_clock;
  static double seconds(Clock::time_point from, Clock::time_point to) {
    return std::chrono::duration<double>(to - from).count();
  }
  bool take(const SampledToken& token);
  void show(const std::string& piece);
  nlohmann::json logprobs_json() const;

  const Tokenizer& tokenizer_;
  TextStream stream_;
  OnText on_text_;
  std::string text_;
  std::vector<SampledToken> tokens_;
  Clock::time_point start_ = Clock::now(), first_ = start_, last_ = start_;
  std::shared_ptr<Sequence> sequence_;
};

}  // namespace ballast
