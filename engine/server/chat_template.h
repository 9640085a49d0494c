// How messages become one prompt. OPT was trained on plain text, so there is no template unless one is given.
//
// The file is a JSON object: for every role a text with {content} in it, what goes before the answer, and where the
// answer ends:
//   {"system": "{content}\n\n", "user": "Question: {content}\n", "assistant": "Answer: {content}\n",
//    "answer": "Answer:", "stop": ["\nQuestion:"]}
// Jinja templates are not understood.
#pragma once

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace ballast::server {

class ChatTemplate {
 public:
  /// Error naming file and field.
  static ChatTemplate open(const std::filesystem::path& file);
  explicit ChatTemplate(const nlohmann::json& object, const std::string& what = "chat template");

  /// ApiError when a role has no text or a message is malformed.
  std::string apply(const nlohmann::json& messages) const;
  const std::vector<std::string>& stop() const { return stop_; }

 private:
  std::map<std::string, std::string> roles_;
  std::string answer_;
  std::vector<std::string> stop_;
};

}  // namespace ballast::server
