#include "engine/server/chat_template.h"

#include "engine/io/json.h"
#include "engine/server/api_error.h"

namespace ballast::server {
namespace {

constexpr std::string_view kContent = "{content}";
constexpr uint64_t kMaxBytes = 1 << 20;

// A string, or the texts of the parts of a message.
std::string content_of(const nlohmann::json& message, const std::string& where) {
  const auto content = message.find("content");
  if (content != message.end() && content->is_string()) return *content;
  std::string text;
  bool good = content != message.end() && content->is_array();
  if (good)
    for (const auto& part : *content) {
      good = good && part.is_object() && part.value("type", nlohmann::json()) == "text" &&
             part.contains("text") && part["text"].is_string();
      if (good) text += part["text"].get<std::string>();
    }
  if (!good) throw ApiError(400, where + ".content: expected a string or an array of text parts", "messages");
  return text;
}

}  // namespace

ChatTemplate ChatTemplate::open(const std::filesystem::path& file) {
  return ChatTemplate(parse_json(read_file(file, kMaxBytes), file.string()), file.string());
}

ChatTemplate::ChatTemplate(const nlohmann::json& object, const std::string& what) {
  answer_ = json_string(object, "answer", what, "");
  if (json_find(object, "stop", what)) {
    for (const auto& text : json_array(object, "stop", what)) {
      if (!text.is_string() || text.get_ref<const std::string&>().empty())
        throw Error(what + ": field 'stop': expected strings that are not empty");
      stop_.push_back(text);
    }
  }
  for (const auto& [role, text] : object.items()) {
    if (role == "answer" || role == "stop") continue;
    const std::string pattern = json_string(object, role.c_str(), what);
    if (pattern.find(kContent) == pattern.npos)
      throw Error(str(what, ": field '", role, "': expected a text with {content} in it"));
    roles_[role] = pattern;
  }
  if (!roles_.contains("user")) throw Error(what + ": field 'user': expected a text with {content} in it");
}

std::string ChatTemplate::apply(const nlohmann::json& messages) const {
  if (!messages.is_array() || messages.empty())
    throw ApiError(400, "messages: expected an array of at least one message", "messages");
  std::string prompt;
  for (size_t i = 0; i < messages.size(); ++i) {
    const nlohmann::json& message = messages[i];
    const std::string where = str("messages[", i, "]");
    if (!message.is_object() || !message.contains("role") || !message["role"].is_string())
      throw ApiError(400, where + ": expected an object with a role", "messages");
    const auto role = roles_.find(message["role"].get<std::string>());
    if (role == roles_.end())
      throw ApiError(400, str(where, ": the chat template has no role ", shown_json(message["role"])),
                     "messages");
    const size_t at = role->second.find(kContent);
    prompt +=
        role->second.substr(0, at) + content_of(message, where) + role->second.substr(at + kContent.size());
  }
  return prompt + answer_;
}

}  // namespace ballast::server
