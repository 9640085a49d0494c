#include "engine/io/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "engine/io/json.h"

namespace ballast {
namespace {

using nlohmann::json;

struct DtypeBits {
  std::string_view name;
  int bits;
};
constexpr std::array<DtypeBits, 22> kDtypes = {{
    {"F16", 16},    {"BF16", 16},   {"F32", 32},        {"F64", 64},        {"I8", 8},      {"U8", 8},
    {"I16", 16},    {"U16", 16},    {"I32", 32},        {"U32", 32},        {"I64", 64},    {"U64", 64},
    {"BOOL", 8},    {"C64", 64},    {"F4", 4},          {"F6_E2M3", 6},     {"F6_E3M2", 6}, {"F8_E5M2", 8},
    {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8},
}};

constexpr size_t kMaxRank = 8;
constexpr size_t kMaxTensors = size_t(1) << 20;
constexpr size_t kMaxString = size_t(16) << 20;

/// Multiplies the dimensions; false when the product, a zero counted as one, exceeds 63 bits: then no order
/// of multiplying overflows later.
bool checked_elements(const std::vector<int64_t>& shape, int64_t& elements) {
  int64_t product = 1;
  bool zero = false;
  for (int64_t size : shape) {
    zero = zero || size == 0;
    if (size != 0 && __builtin_mul_overflow(product, size, &product)) return false;
  }
  elements = zero ? 0 : product;
  return true;
}

/// Reads the header straight into the list, without a tree of JSON values in between.
class HeaderReader : public json::json_sax_t {
 public:
  HeaderReader(std::vector<StoredTensor>& tensors, const std::string& what, int file)
      : tensors_(tensors), what_(what), file_(file) {}

  bool start_object(size_t) override {
    if (level_ == Level::outside) {
      level_ = Level::top;
    } else if (level_ == Level::entry && field_ == kNone) {
      level_ = metadata_ ? Level::metadata : Level::tensor;
      seen_ = 0;
    } else {
      unexpected("an object");
    }
    return true;
  }

  bool key(string_t& name) override {
    if (level_ == Level::top) {
      level_ = Level::entry;
      field_ = kNone;
      begin_entry(name);
    } else if (level_ == Level::tensor) {
      field_ = name == "dtype"          ? kDtype
               : name == "shape"        ? kShape
               : name == "data_offsets" ? kOffsets
                                        : kNone;
      if (field_ == kNone) fail("unknown field " + shown(name));
      if (seen_ & field_) fail("duplicate field " + shown(name));
      seen_ |= field_;
      numbers_ = 0;
    }
    return true;
  }

  bool end_object() override {
    if (level_ == Level::tensor) finish_tensor();
    level_ = level_ == Level::top ? Level::outside : Level::top;
    return true;
  }

  bool start_array(size_t) override {
    if (level_ != Level::tensor || array_ || field_ == kDtype) unexpected("an array");
    array_ = true;
    return true;
  }
  bool end_array() override {
    if (field_ == kOffsets && numbers_ != 2) fail(str("data_offsets has ", numbers_, " numbers, expected 2"));
    array_ = false;
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (!array_) unexpected("a number");
    if (field_ == kShape) {
      if (value > uint64_t(INT64_MAX))
        fail(str("shape has the dimension ", value, ", which exceeds 63 bits"));
      if (numbers_ == kMaxRank) fail(str("shape has more than ", kMaxRank, " dimensions"));
      tensors_.back().shape.push_back(int64_t(value));
    } else if (numbers_ < 2) {
      offsets_[numbers_] = value;
    }
    numbers_ = std::min<size_t>(numbers_ + 1, 1000);
    return true;
  }
  bool string(string_t& value) override {
    if (level_ == Level::metadata) return true;
    if (level_ != Level::tensor || field_ != kDtype) unexpected("a string");
    if (value.size() > 32) fail("dtype is " + shown(value, 32));
    tensors_.back().dtype = value;
    return true;
  }

  bool number_integer(number_integer_t value) override { unexpected(str("the number ", value)); }
  bool number_float(number_float_t, const string_t& text) override {
    unexpected("the number " + shown(text, 30));
  }
  bool boolean(bool) override { unexpected("a boolean"); }
  bool null() override { unexpected("null"); }
  bool binary(binary_t&) override { return false; }

  bool parse_error(size_t position, const std::string&, const json::exception& error) override {
    std::string_view reason = error.what();
    if (const size_t at = reason.find(" - "); at != reason.npos) reason.remove_prefix(at + 3);
    reason = reason.substr(0, reason.find("; last read"));
    throw Error(str(what_, ": header is not valid JSON at byte ", 8 + position, ": ", reason.substr(0, 120)));
  }

 private:
  enum class Level { outside, top, entry, tensor, metadata };
  enum Field { kNone = 0, kDtype = 1, kShape = 2, kOffsets = 4 };

  [[noreturn]] void fail(const std::string& reason) const {
    if (metadata_) throw Error(what_ + ": header: __metadata__: " + reason);
    if (level_ == Level::outside || level_ == Level::top) throw Error(what_ + ": header: " + reason);
    throw Error(str(what_, ": header: tensor ", shown(tensors_.back().name), ": ", reason));
  }
  [[noreturn]] void unexpected(const std::string& got) const {
    if (metadata_) fail("expected an object of strings, got " + got);
    if (level_ != Level::tensor) fail("expected an object of dtype, shape and data_offsets, got " + got);
    const char* const name = field_ == kDtype ? "dtype" : field_ == kShape ? "shape" : "data_offsets";
    fail(str(name, ": expected ", field_ == kDtype ? "a string" : "an array of unsigned integers", ", got ",
             got));
  }

  void begin_entry(string_t& name) {
    metadata_ = name == "__metadata__";
    if (metadata_) {
      if (seen_metadata_) fail("appears twice");
      seen_metadata_ = true;
      return;
    }
    if (tensors_.size() >= kMaxTensors) throw Error(str(what_, ": more than ", kMaxTensors, " tensors"));
    StoredTensor& tensor = tensors_.emplace_back();
    tensor.name = name;
    tensor.file = file_;
  }

  void finish_tensor() {
    StoredTensor& tensor = tensors_.back();
    for (const auto& [field, name] :
         {std::pair(kDtype, "dtype"), {kShape, "shape"}, {kOffsets, "data_offsets"}})
      if (!(seen_ & field)) fail(str("field ", name, " is missing"));
    const auto [begin, end] = offsets_;
    if (end < begin) fail(str("data_offsets [", begin, ", ", end, "] end before they begin"));
    int64_t elements = 0;
    if (!checked_elements(tensor.shape, elements)) fail("the product of the shape exceeds 63 bits");
    tensor.shape.shrink_to_fit();
    tensor.offset = begin;
    tensor.bytes = end - begin;
    const int bits = bits_of_dtype(tensor.dtype);
    if (bits == 0) return;
    const auto total_bits = static_cast<unsigned __int128>(elements) * unsigned(bits);
    if (total_bits % 8 != 0 || total_bits / 8 != tensor.bytes)
      fail(str("data_offsets span ", tensor.bytes, " bytes, expected ", elements, " elements of ",
               tensor.dtype));
  }

  std::vector<StoredTensor>& tensors_;
  const std::string& what_;
  const int file_;
  Level level_ = Level::outside;
  Field field_ = kNone;
  int seen_ = 0;
  bool array_ = false, metadata_ = false, seen_metadata_ = false;
  size_t numbers_ = 0;
  std::array<uint64_t, 2> offsets_{};
};

/// Bounds what the JSON library's lexer buffers for one token, and counts the tensors so that the list is
/// allocated once. Both are estimates of hostile text at worst, exact for a valid header.
size_t scan_header(std::string_view header, const std::string& what) {
  size_t count = 0;
  for (size_t at = 0; (at = header.find('"', at)) != header.npos;) {
    const size_t first = ++at;
    while (at < header.size() && header[at] != '"') at += header[at] == '\\' ? 2 : 1;
    if (at > first + kMaxString)
      throw Error(str(what, ": header: string of more than ", kMaxString, " bytes at byte ", 8 + first));
    if (at < header.size() && header.substr(first, at - first) == "data_offsets") ++count;
    ++at;
  }
  return std::min(count, kMaxTensors);
}

/// Sorts by position and demands that the ranges cover [0, data_bytes) without holes and overlaps.
void check_ranges(std::vector<StoredTensor>& tensors, uint64_t data_bytes, const std::string& what) {
  const auto earlier = [](const StoredTensor& a, const StoredTensor& b) {
    return a.offset != b.offset ? a.offset < b.offset : a.bytes < b.bytes;
  };
  if (!std::is_sorted(tensors.begin(), tensors.end(), earlier))
    std::sort(tensors.begin(), tensors.end(), earlier);
  uint64_t end = 0;
  for (const StoredTensor& tensor : tensors) {
    if (tensor.offset != end)
      throw Error(str(what, ": header: tensor ", shown(tensor.name), ": data_offsets begin at ",
                      tensor.offset,
                      tensor.offset < end ? ", inside the tensor before, expected " : ", expected ", end));
    end = tensor.offset + tensor.bytes;  // no overflow: both are halves of [begin, end] of 64-bit numbers
  }
  if (end != data_bytes)
    throw Error(str(what, ": the tensors end at byte ", end, " of the data, expected ", data_bytes,
                    ", the end of the file"));
}

void check_names(const std::vector<StoredTensor>& tensors, const std::string& what) {
  std::vector<uint32_t> order(tensors.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = uint32_t(i);
  std::sort(order.begin(), order.end(),
            [&](uint32_t a, uint32_t b) { return tensors[a].name < tensors[b].name; });
  for (size_t i = 1; i < order.size(); ++i)
    if (tensors[order[i]].name == tensors[order[i - 1]].name)
      throw Error(str(what, ": header: tensor ", shown(tensors[order[i]].name), " appears twice"));
}

}  // namespace

int64_t StoredTensor::elements() const {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  return count;
}

int bits_of_dtype(std::string_view dtype) {
  for (const DtypeBits& known : kDtypes)
    if (known.name == dtype) return known.bits;
  return 0;
}

std::vector<StoredTensor> parse_safetensors(std::string_view file, const std::string& what, int file_index) {
  if (file.size() < 8)
    throw Error(str(what, ": ", file.size(), " bytes, expected at least 8 of a safetensors file"));
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | static_cast<unsigned char>(file[size_t(i)]);
  if (length > kMaxHeaderBytes)
    throw Error(str(what, ": header length at byte 0: expected at most ", kMaxHeaderBytes, ", got ", length));
  if (length > file.size() - 8)
    throw Error(str(what, ": header length at byte 0: expected at most ", file.size() - 8,
                    ", the rest of the file, got ", length));
  const std::string_view header = file.substr(8, size_t(length));
  if (!header.starts_with('{'))
    throw Error(
        str(what, ": header at byte 8: expected '{', got ", header.empty() ? "nothing" : shown(header, 1)));
  // The JSON library takes a NUL between values for the end of the text and would ignore what follows.
  if (const size_t at = header.find('\0'); at != header.npos)
    throw Error(str(what, ": header is not valid JSON at byte ", 8 + at, ": a NUL byte"));

  std::vector<StoredTensor> tensors;
  tensors.reserve(scan_header(header, what));
  HeaderReader reader(tensors, what, file_index);
  json::sax_parse(header.begin(), header.end(), &reader);
  check_ranges(tensors, file.size() - 8 - length, what);
  check_names(tensors, what);
  for (StoredTensor& tensor : tensors) tensor.offset += 8 + length;
  return tensors;
}

std::string safetensors_header(const std::vector<StoredTensor>& tensors) {
  std::string text = R"({"__metadata__":{"format":"pt"})";
  uint64_t offset = 0;
  for (const StoredTensor& tensor : tensors) {
    text += str(",", json(tensor.name).dump(), R"(:{"dtype":")", tensor.dtype, R"(","shape":)",
                json(tensor.shape).dump(), R"(,"data_offsets":[)", offset, ",", offset + tensor.bytes, "]}");
    offset += tensor.bytes;
  }
  text += '}';
  text.append((8 - text.size() % 8) % 8, ' ');
  if (text.size() > kMaxHeaderBytes)
    throw RuntimeFailure(
        str("safetensors header of ", text.size(), " bytes, the format allows ", kMaxHeaderBytes));
  std::string header(8, '\0');
  for (size_t i = 0; i < 8; ++i) header[i] = char(text.size() >> (8 * i) & 0xFF);
  return header + text;
}

ShardIndex parse_shard_index(std::string_view text, const std::string& what) {
  const json root = parse_json(text, what);
  ShardIndex index;
  for (const auto& [tensor, file] : json_object(root, "weight_map", what).items()) {
    if (!file.is_string())
      throw Error(
          str(what, ": weight_map: ", shown(tensor), ": expected a file name, got ", shown_json(file)));
    const auto& name = file.get_ref<const std::string&>();
    // Also rules out absolute paths; a name must stay inside the folder.
    if (name.find_first_of(std::string_view("/\\\0", 3)) != name.npos || name == "." || name == "..")
      throw Error(
          str(what, ": weight_map: ", shown(tensor), ": expected a plain file name, got ", shown(name)));
    if (!name.ends_with(".safetensors") || name.size() > 255)
      throw Error(
          str(what, ": weight_map: ", shown(tensor), ": expected a .safetensors file, got ", shown(name)));
    index.weight_map.emplace_back(tensor, name);
  }
  if (index.weight_map.empty()) throw Error(what + ": field 'weight_map': expected tensor names, got none");
  if (const json* metadata = json_find(root, "metadata", what); metadata && metadata->is_object())
    if (const auto at = metadata->find("total_size"); at != metadata->end() && at->is_number_unsigned())
      index.total_size = at->get<uint64_t>();
  return index;
}

}  // namespace ballast
