// JSON from outside: parsing with limits, and typed access to fields with one-line errors.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "kernels/check.h"

namespace ballast {

struct JsonLimits {
  int depth = 64;                             ///< nested arrays and objects
  uint64_t bytes = uint64_t(256) << 20;       ///< of text
  uint64_t values = uint64_t(8) << 20;        ///< values of any type, all levels together
  uint64_t array_length = uint64_t(8) << 20;  ///< elements of one array
};

/// Parses one JSON value (RFC 8259, nothing after it). Throws Error starting with `what`, the file or request
/// the text comes from, on bad syntax, ill-formed UTF-8, a byte-order mark, a duplicate key, an integer
/// beyond 64 bits, a number beyond binary64, or a limit exceeded.
nlohmann::json parse_json(std::string_view text, const std::string& what, const JsonLimits& limits = {});

/// Contents of a regular file. Throws Error for anything else (folder, FIFO, device, unreadable, longer than
/// `max_bytes`) and never blocks. With `follow_links` false a symbolic link is an Error too.
std::string read_file(const std::filesystem::path& path, uint64_t max_bytes, bool follow_links = true);

/// `text` in quotation marks for a one-line message: control characters and ill-formed bytes escaped,
/// shortened to `max_bytes`.
std::string shown(std::string_view text, size_t max_bytes = 80);
/// A short description of a value for messages: `"abc"`, `12`, `an array of 3`, `null`.
std::string shown_json(const nlohmann::json& value);

// Fields of an object. `what` is where the object comes from, for messages. The forms without `fallback`
// demand the field; those with one return it when the field is absent or null. Throws Error naming what,
// field, expected and got.

int64_t json_int(const nlohmann::json& object, const char* key, const std::string& what, int64_t low,
                 int64_t high);
int64_t json_int(const nlohmann::json& object, const char* key, const std::string& what, int64_t low,
                 int64_t high, int64_t fallback);
/// A finite number in [low, high]; integers count.
double json_number(const nlohmann::json& object, const char* key, const std::string& what, double low,
                   double high);
double json_number(const nlohmann::json& object, const char* key, const std::string& what, double low,
                   double high, double fallback);
bool json_bool(const nlohmann::json& object, const char* key, const std::string& what);
bool json_bool(const nlohmann::json& object, const char* key, const std::string& what, bool fallback);
std::string json_string(const nlohmann::json& object, const char* key, const std::string& what);
std::string json_string(const nlohmann::json& object, const char* key, const std::string& what,
                        const std::string& fallback);
const nlohmann::json& json_object(const nlohmann::json& object, const char* key, const std::string& what);
const nlohmann::json& json_array(const nlohmann::json& object, const char* key, const std::string& what);
/// The field, or null when it is absent or null. Error if `object` is not an object.
const nlohmann::json* json_find(const nlohmann::json& object, const char* key, const std::string& what);

}  // namespace ballast
