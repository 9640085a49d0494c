// What the tokenizer tests share: golden files, comparison of ids, tokenizers from memory.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

#include "engine/io/tokenizer_files.h"
#include "kernels/check.h"

namespace ballast::test {

inline const std::filesystem::path kTokenizerGoldens = BALLAST_SOURCE_DIR "/tests/golden/tokenizer";
inline const std::filesystem::path kSharedData = BALLAST_SOURCE_DIR "/../shared/data";

inline std::string file_text(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in) << path;
  return {std::istreambuf_iterator<char>(in), {}};
}

inline const nlohmann::json& tokenizer_goldens() {
  static const nlohmann::json goldens = nlohmann::json::parse(file_text(kTokenizerGoldens / "goldens.json"));
  return goldens;
}

/// The short cases that a golden file lists in full.
inline void expect_cases(const Tokenizer& tokenizer, const nlohmann::json& cases) {
  ASSERT_FALSE(cases.empty());
  for (const auto& one : cases) {
    const std::string text = one.at("text");
    EXPECT_EQ(tokenizer.encode(text), one.at("ids").get<std::vector<int32_t>>()) << one.dump();
  }
}

/// The message of the Error that opening `files` throws; empty if it opens.
inline std::string open_error(const TokenizerFiles& files) {
  try {
    open_tokenizer(files);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

/// A vocabulary of the 256 bytes (ids 4 to 259, in the alphabet's order) behind `<s> <pad> </s> <unk>`, as
/// OPT has it. "th" 260 and "the" 261 are its merges.
inline nlohmann::json small_vocabulary() {
  nlohmann::json vocabulary = {{"<s>", 0},   {"<pad>", 1}, {"</s>", 2},
                               {"<unk>", 3}, {"th", 260},  {"the", 261}};
  int id = 4;
  const auto add = [&](unsigned code_point) {
    std::string character(1, static_cast<char>(code_point));
    if (code_point >= 0x80) {
      character = {static_cast<char>(0xC0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 0x3F))};
    }
    vocabulary[character] = id++;
  };
  for (unsigned c = 0x21; c <= 0x7E; ++c) add(c);
  for (unsigned c = 0xA1; c <= 0xFF; ++c) {
    if (c != 0xAD) add(c);
  }
  for (unsigned c = 0x100; c <= 0x143; ++c) add(c);
  return vocabulary;
}

inline TokenizerFiles small_files() {
  TokenizerFiles files;
  files.folder = "model";
  files.vocab_json = small_vocabulary().dump();
  files.merges_txt = "#version: 0.2\nt h\nth e\n";
  files.tokenizer_config = R"({"tokenizer_class": "GPT2Tokenizer", "add_bos_token": true, "bos_token": "</s>",
                               "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"})";
  return files;
}

}  // namespace ballast::test
