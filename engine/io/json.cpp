#include "engine/io/json.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <vector>

namespace ballast {
namespace {

using nlohmann::json;

/// Builds the value while checking what the library's own parser lets pass: depth, duplicate keys (it keeps
/// the last), integers beyond 64 bits (it turns them into doubles).
class LimitedBuilder : public json::json_sax_t {
 public:
  LimitedBuilder(const std::string& what, const JsonLimits& limits) : what_(what), limits_(limits) {}

  json take() { return std::move(root_); }

  bool null() override { return put(nullptr); }
  bool boolean(bool value) override { return put(value); }
  bool number_integer(number_integer_t value) override { return put(value); }
  bool number_unsigned(number_unsigned_t value) override { return put(value); }
  bool number_float(number_float_t value, const string_t& text) override {
    if (text.find_first_of(".eE") == string_t::npos)
      fail(str("integer ", shown(text, 30), " exceeds 64 bits"));
    return put(value);
  }
  bool string(string_t& value) override { return put(std::move(value)); }
  bool binary(binary_t&) override { return false; }

  bool start_object(size_t) override { return open(json::object()); }
  bool start_array(size_t) override { return open(json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    const auto [at, inserted] = open_.back()->get_ref<json::object_t&>().try_emplace(std::move(name));
    if (!inserted) fail("duplicate key " + shown(at->first));
    member_ = &at->second;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const json::exception& error) override {
    // The library's text ends with the offending token, which may be as long as the file: keep the reason
    // only.
    std::string_view reason = error.what();
    if (const size_t at = reason.find("] "); at != reason.npos) reason.remove_prefix(at + 2);
    if (const size_t at = reason.find(" - "); at != reason.npos) reason.remove_prefix(at + 3);
    reason = reason.substr(0, reason.find("; last read"));
    fail(str("not valid JSON at byte ", position, ": ", reason.substr(0, 120)));
  }

 private:
  [[noreturn]] void fail(const std::string& reason) const { throw Error(what_ + ": " + reason); }

  json* place(json&& value) {
    if (++values_ > limits_.values) fail(str("more than ", limits_.values, " JSON values"));
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    if (open_.back()->is_object()) {
      *member_ = std::move(value);
      return member_;
    }
    auto& array = open_.back()->get_ref<json::array_t&>();
    if (array.size() >= limits_.array_length)
      fail(str("array of more than ", limits_.array_length, " elements"));
    array.push_back(std::move(value));
    return &array.back();
  }
  bool put(json value) {
    place(std::move(value));
    return true;
  }
  bool open(json&& value) {
    if (int(open_.size()) >= limits_.depth) fail(str("nested deeper than ", limits_.depth, " levels"));
    // An element of an array does not move while it is open: its siblings come after it is closed.
    open_.push_back(place(std::move(value)));
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  const std::string& what_;
  const JsonLimits& limits_;
  json root_;
  std::vector<json*> open_;
  json* member_ = nullptr;
  uint64_t values_ = 0;
};

[[noreturn]] void field_error(const std::string& what, const char* key, const std::string& expected,
                              const std::string& got) {
  throw Error(str(what, ": field '", key, "': expected ", expected, ", got ", got));
}

const json& need(const json& object, const char* key, const std::string& what, const std::string& expected) {
  if (!object.is_object()) throw Error(str(what, ": expected an object, got ", shown_json(object)));
  const auto at = object.find(key);
  if (at == object.end()) field_error(what, key, expected, "nothing");
  return *at;
}

}  // namespace

nlohmann::json parse_json(std::string_view text, const std::string& what, const JsonLimits& limits) {
  if (text.size() > limits.bytes)
    throw Error(str(what, ": ", text.size(), " bytes of JSON, expected at most ", limits.bytes));
  if (text.starts_with("\xEF\xBB\xBF")) throw Error(what + ": starts with a byte-order mark, expected JSON");
  // The library takes a NUL between values for the end of the text and would ignore what follows.
  if (const size_t at = text.find('\0'); at != text.npos)
    throw Error(str(what, ": not valid JSON at byte ", at, ": a NUL byte"));
  LimitedBuilder builder(what, limits);
  json::sax_parse(text.begin(), text.end(), &builder);
  return builder.take();
}

std::string read_file(const std::filesystem::path& path, uint64_t max_bytes, bool follow_links) {
  const auto fail = [&](const std::string& reason) { throw Error(path.string() + ": " + reason); };
  // O_NONBLOCK: opening a FIFO without a writer returns at once, and is refused below.
  const int flags = O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY | (follow_links ? 0 : O_NOFOLLOW);
  const int file = ::open(path.c_str(), flags);
  if (file < 0) {
    if (!follow_links && errno == ELOOP) fail("is a symbolic link, which strict paths refuse");
    fail(str("cannot open: ", std::strerror(errno)));
  }
  struct Closer {
    int file;
    ~Closer() { ::close(file); }
  } closer{file};
  struct stat status {};
  if (::fstat(file, &status) != 0) fail(str("cannot open: ", std::strerror(errno)));
  if (!S_ISREG(status.st_mode)) fail("is not a regular file");
  std::string content;
  if (uint64_t(status.st_size) <= max_bytes) content.resize(size_t(status.st_size));
  size_t done = 0;
  while (true) {
    // One byte beyond the expected end tells a file that grew (or a /proc file of size 0) from one that is
    // read.
    if (done == content.size()) content.resize(std::max<size_t>(done + 1, done + done / 2));
    if (uint64_t(status.st_size) > max_bytes || done > max_bytes)
      fail(str("is longer than ", max_bytes, " bytes, the most that is read"));
    const ssize_t count = ::read(file, content.data() + done, content.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(str("cannot read: ", std::strerror(errno)));
    if (count == 0) break;
    done += size_t(count);
  }
  content.resize(done);
  return content;
}

std::string shown(std::string_view text, size_t max_bytes) {
  static constexpr char kHex[] = "0123456789abcdef";
  const bool cut = text.size() > max_bytes;
  text = text.substr(0, max_bytes);
  // Bytes above 0x7F stay only if the whole is well-formed, which the JSON library can tell by writing it
  // strictly.
  bool well_formed = true;
  try {
    (void)json(std::string(text)).dump();
  } catch (const json::exception&) {
    well_formed = false;
  }
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20 || byte == 0x7F || (byte > 0x7F && !well_formed)) {
      out += "\\x";
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    } else {
      out += c;
    }
  }
  return out + (cut ? "\"..." : "\"");
}

std::string shown_json(const nlohmann::json& value) {
  if (value.is_string()) return shown(std::string_view(value.get_ref<const std::string&>()));
  if (value.is_array()) return str("an array of ", value.size());
  if (value.is_object()) return str("an object of ", value.size(), " fields");
  return value.dump();
}

const nlohmann::json* json_find(const nlohmann::json& object, const char* key, const std::string& what) {
  if (!object.is_object()) throw Error(str(what, ": expected an object, got ", shown_json(object)));
  const auto at = object.find(key);
  return at == object.end() || at->is_null() ? nullptr : &*at;
}

int64_t json_int(const nlohmann::json& object, const char* key, const std::string& what, int64_t low,
                 int64_t high) {
  const std::string expected = str("an integer in [", low, ", ", high, "]");
  const json& value = need(object, key, what, expected);
  const bool too_big = value.is_number_unsigned() && value.get<uint64_t>() > uint64_t(INT64_MAX);
  if (!value.is_number_integer() || too_big || value.get<int64_t>() < low || value.get<int64_t>() > high)
    field_error(what, key, expected, shown_json(value));
  return value.get<int64_t>();
}

int64_t json_int(const nlohmann::json& object, const char* key, const std::string& what, int64_t low,
                 int64_t high, int64_t fallback) {
  return json_find(object, key, what) ? json_int(object, key, what, low, high) : fallback;
}

double json_number(const nlohmann::json& object, const char* key, const std::string& what, double low,
                   double high) {
  const std::string expected = str("a number in [", low, ", ", high, "]");
  const json& value = need(object, key, what, expected);
  if (!value.is_number()) field_error(what, key, expected, shown_json(value));
  const double number = value.get<double>();
  if (!std::isfinite(number) || number < low || number > high)
    field_error(what, key, expected, shown_json(value));
  return number;
}

double json_number(const nlohmann::json& object, const char* key, const std::string& what, double low,
                   double high, double fallback) {
  return json_find(object, key, what) ? json_number(object, key, what, low, high) : fallback;
}

bool json_bool(const nlohmann::json& object, const char* key, const std::string& what) {
  const json& value = need(object, key, what, "true or false");
  if (!value.is_boolean()) field_error(what, key, "true or false", shown_json(value));
  return value.get<bool>();
}

bool json_bool(const nlohmann::json& object, const char* key, const std::string& what, bool fallback) {
  return json_find(object, key, what) ? json_bool(object, key, what) : fallback;
}

std::string json_string(const nlohmann::json& object, const char* key, const std::string& what) {
  const json& value = need(object, key, what, "a string");
  if (!value.is_string()) field_error(what, key, "a string", shown_json(value));
  return value.get<std::string>();
}

std::string json_string(const nlohmann::json& object, const char* key, const std::string& what,
                        const std::string& fallback) {
  return json_find(object, key, what) ? json_string(object, key, what) : fallback;
}

const nlohmann::json& json_object(const nlohmann::json& object, const char* key, const std::string& what) {
  const json& value = need(object, key, what, "an object");
  if (!value.is_object()) field_error(what, key, "an object", shown_json(value));
  return value;
}

const nlohmann::json& json_array(const nlohmann::json& object, const char* key, const std::string& what) {
  const json& value = need(object, key, what, "an array");
  if (!value.is_array()) field_error(what, key, "an array", shown_json(value));
  return value;
}

}  // namespace ballast
