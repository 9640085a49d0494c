// Ids of one sequence as they come, to text that can be shown: whole characters, nothing of a stop string.
#pragma once

#include "engine/io/tokenizer.h"
#include "engine/runtime/stop_strings.h"

namespace ballast {

class TextStream {
 public:
  /// `decoder` stands where the text begins, `characters` are before it. Error when a stop string is empty.
  TextStream(StreamDecoder decoder, std::vector<std::string> stop, int64_t characters = 0)
      : decoder_(std::move(decoder)), stop_(std::move(stop)), characters_(characters) {}

  /// Text that became certain with `id`; may be empty.
  std::string push(int32_t id) {
    const std::string decoded = decoder_.push(id);
    characters_ += count_characters(decoded);
    return stop_.push(decoded);
  }
  /// What was held back, once no more ids can come; nothing after a stop string.
  std::string flush() {
    std::string text = stop_.push(decoder_.flush());
    return text += stop_.flush();
  }
  /// True once a stop string was seen.
  bool stopped() const { return stop_.stopped(); }
  /// Characters (code points) decoded so far, the ones before included: where the next token begins.
  int64_t characters() const { return characters_; }

 private:
  StreamDecoder decoder_;
  StopStrings stop_;
  int64_t characters_;
};

}  // namespace ballast
