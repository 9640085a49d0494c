// The JSON files of a checkpoint from memory. The first byte chooses: 'i' a shard index, 'q' a
// quantization_config, any other JSON as such.
#include <cstdlib>
#include <string>
#include <string_view>

#include "engine/io/json.h"
#include "engine/io/packed.h"

namespace {

using namespace ballast;

void require(bool condition) {
  if (!condition) std::abort();
}

void read_index(std::string_view text) {
  const ShardIndex index = parse_shard_index(text, "input");
  require(!index.weight_map.empty());
  for (const auto& [tensor, file] : index.weight_map)
    require(file.find('/') == file.npos && file.find('\0') == file.npos && file.ends_with(".safetensors"));
}

void read_quantization(std::string_view text) {
  const auto config = parse_packed_config(parse_json(text, "input"), "input");
  if (!config) return;
  const int bits = config->bits;
  const bool own = config->layout == PackedLayout::ballast;
  require(own ? bits >= 1 && bits <= 8 : bits == 2 || bits == 3 || bits == 4 || bits == 8);
  require(config->group_size == -1 || config->group_size > 0);
  // What is written from it says the same.
  const auto again = parse_packed_config(packed_config_json(*config), "again");
  require(again->layout == config->layout && again->bits == bits && again->symmetric == config->symmetric);
  require(again->group_size == config->group_size && again->encodings == config->encodings);
}

void read_json(std::string_view text) {
  const nlohmann::json value = parse_json(text, "input", {.depth = 20, .values = 1000});
  require(parse_json(value.dump(), "again") == value);
  require(shown_json(value).find('\n') == std::string::npos);
  if (!value.is_object()) return;
  for (const auto& [key, field] : value.items()) {
    // Each helper gives the value of its type or says why not; which of the two is the type's affair.
    const auto attempt = [&](const auto& read) {
      try {
        read();
        return true;
      } catch (const Error&) {
        return false;
      }
    };
    const char* const name = key.c_str();
    if (key.find('\0') != key.npos) continue;
    const bool integer = attempt([&] { require(json_int(value, name, "input", -5, 5) <= 5); });
    const bool number = attempt([&] { require(json_number(value, name, "input", -5, 5) <= 5); });
    require(!integer || number);
    require(attempt([&] { (void)json_bool(value, name, "input"); }) == field.is_boolean());
    require(attempt([&] { (void)json_string(value, name, "input"); }) == field.is_string());
    require(attempt([&] { (void)json_array(value, name, "input"); }) == field.is_array());
    require(attempt([&] { (void)json_object(value, name, "input"); }) == field.is_object());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  try {
    if (data[0] == 'i') {
      read_index(text);
    } else if (data[0] == 'q') {
      read_quantization(text);
    } else {
      read_json(text);
    }
  } catch (const Error& error) {
    const std::string_view message = error.what();
    require(message.find('\n') == message.npos && message.size() < 1000);
  }
  return 0;
}
