#include "quantize/records.h"

#include <bit>
#include <cstring>
#include <type_traits>

#include "engine/io/packed_bits.h"

namespace ballast {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are stored as they lie");

bool known_width(int bits) {
  return bits == 2 || bits == 3 || bits == 4 || bits == 8;
}

/// Appends values to a string.
class Writer {
 public:
  template <class... Values>
  void operator()(const Values&... values) {
    (put(values), ...);
  }
  /// A byte per code in memory, `bits` here.
  void codes(const std::vector<uint8_t>& codes, int bits) {
    CHECK(known_width(bits));
    std::vector<uint32_t> words(size_t(packed_words(int64_t(codes.size()), bits)));
    pack_codes(codes.data(), int64_t(codes.size()), bits, words.data());
    put(uint64_t(codes.size()));
    raw(words.data(), words.size() * sizeof words[0]);
  }
  std::string take() { return std::move(out_); }

 private:
  template <class Number>
  requires std::is_arithmetic_v<Number>
  void put(Number value) { raw(&value, sizeof value); }
  void put(const std::string& text) {
    put(uint64_t(text.size()));
    raw(text.data(), text.size());
  }
  template <class Number>
  void put(const std::vector<Number>& values) {
    put(uint64_t(values.size()));
    raw(values.data(), values.size() * sizeof(Number));
  }
  void raw(const void* data, size_t size) { out_.append(static_cast<const char*>(data), size); }

  std::string out_;
};

/// Takes values from bytes that may be anything.
class Reader {
 public:
  Reader(std::string_view bytes, const std::string& what) : left_(bytes), what_(what) {}

  template <class... Values>
  void operator()(Values&... values) {
    (get(values), ...);
  }
  void codes(std::vector<uint8_t>& codes, int bits) {
    if (!known_width(bits)) fail(str("has codes of ", bits, " bits"));
    const uint64_t count = number();
    if (count > uint64_t(left_.size()) * 8 / uint64_t(bits)) fail("ends early");
    codes.resize(size_t(count));
    const char* words = raw(size_t(packed_words(int64_t(count), bits)) * sizeof(uint32_t));
    unpack_codes(words, int64_t(count), bits, codes.data());
  }
  uint64_t number() {
    uint64_t value;
    get(value);
    return value;
  }
  void expect_end() const {
    if (!left_.empty()) fail(str("has ", left_.size(), " bytes too many"));
  }
  [[noreturn]] void fail(const std::string& how) const { throw Error(what_ + ": " + how); }

 private:
  template <class Number>
  requires std::is_arithmetic_v<Number>
  void get(Number& value) { std::memcpy(&value, raw(sizeof value), sizeof value); }
  void get(bool& value) {
    uint8_t byte;
    get(byte);
    if (byte > 1) fail(str("has ", int(byte), " for yes or no"));
    value = byte == 1;
  }
  void get(std::string& text) {
    const uint64_t size = number();
    text.assign(raw(size), size);
  }
  template <class Number>
  void get(std::vector<Number>& values) {
    const uint64_t count = number();
    if (count > left_.size() / sizeof(Number)) fail("ends early");
    values.resize(size_t(count));
    if (count > 0)
      std::memcpy(values.data(), raw(size_t(count) * sizeof(Number)), size_t(count) * sizeof(Number));
  }
  const char* raw(uint64_t size) {
    if (size > left_.size()) fail("ends early");
    const char* data = left_.data();
    left_.remove_prefix(size_t(size));
    return data;
  }

  std::string_view left_;
  const std::string& what_;
};

// One list of fields serves both directions. Structured bindings name every member, so that a new one does not
// compile until it is added here.

template <class Archive, class Matrix>
requires std::is_same_v<std::remove_const_t<Matrix>, AffineMatrix>
void fields(Archive& archive, Matrix& matrix) {
  auto& [bits, out, in, group_size, codes, scales, zero_points, half_zeros] = matrix;
  archive(bits, out, in, group_size, half_zeros);
  archive.codes(codes, bits);
  archive(scales, zero_points);
}

template <class Archive, class Matrix>
requires std::is_same_v<std::remove_const_t<Matrix>, SparseOutlierMatrix>
void fields(Archive& archive, Matrix& matrix) {
  auto& [bits, stat_bits, out, in, group_size, codes, scale_codes, zero_codes, stats, rows, columns, values] =
      matrix;
  archive(bits, stat_bits, out, in, group_size);
  archive.codes(codes, bits);
  archive(scale_codes, zero_codes, stats, rows, columns, values);
}

template <class Archive, class Matrix>
requires std::is_same_v<std::remove_const_t<Matrix>, ResidualBinaryMatrix>
void fields(Archive& archive, Matrix& matrix) {
  auto& [out, in, block_size, codes, salient, coefficients] = matrix;
  archive(out, in, block_size);
  archive.codes(codes, 2);
  archive(salient, coefficients);
}

template <class Archive, class Report>
void report_fields(Archive& archive, Report& report) {
  auto& [name, out, in, bits, group_size, per_weight, before, after, damping, zeros, outliers, seconds] =
      report;
  archive(name, out, in, bits, group_size, per_weight, before, after, damping, zeros, outliers, seconds);
}

template <class Archive, class Tokens>
void token_fields(Archive& archive, Tokens& tokens) {
  auto& [samples, length, ids, source, images] = tokens;
  CHECK(!images, "images are read again");
  archive(samples, length, ids, source);
}

// The alternative whose number is `index`, by counting through the variant's types.
template <size_t kIndex = 0>
QuantizedMatrix empty_alternative(uint64_t index, const Reader& reader) {
  if constexpr (kIndex < std::variant_size_v<QuantizedMatrix>) {
    if (index == kIndex) return QuantizedMatrix(std::in_place_index<kIndex>);
    return empty_alternative<kIndex + 1>(index, reader);
  }
  reader.fail(str("has encoding ", index));
}

}  // namespace

std::string to_bytes(const LayerRecord& record) {
  const auto& [matrix, bias, positions, report] = record;
  Writer writer;
  writer(uint64_t(matrix.index()));
  std::visit([&](const auto& m) { fields(writer, m); }, matrix);
  writer(bias, positions);
  report_fields(writer, report);
  return writer.take();
}

LayerRecord layer_from_bytes(std::string_view bytes, const std::string& what) {
  Reader reader(bytes, what);
  LayerRecord record;
  auto& [matrix, bias, positions, report] = record;
  matrix = empty_alternative(reader.number(), reader);
  std::visit([&](auto& m) { fields(reader, m); }, matrix);
  reader(bias, positions);
  report_fields(reader, report);
  reader.expect_end();
  const auto too_large = [](int64_t size) { return size < 1 || size > INT32_MAX; };
  if (too_large(out_features(matrix)) || too_large(in_features(matrix)))
    reader.fail(str("has the shape [", out_features(matrix), ", ", in_features(matrix), "]"));
  std::visit([&](const auto& m) { m.check(what); }, matrix);
  const auto rows = size_t(out_features(matrix));
  if ((!bias.empty() && bias.size() != rows) || positions.size() % rows != 0)
    reader.fail(str("has ", bias.size(), " biases and ", positions.size(), " position values for ", rows,
                    " outputs"));
  return record;
}

std::string to_bytes(const CalibrationTokens& tokens) {
  Writer writer;
  token_fields(writer, tokens);
  return writer.take();
}

CalibrationTokens tokens_from_bytes(std::string_view bytes, const std::string& what) {
  Reader reader(bytes, what);
  CalibrationTokens tokens;
  token_fields(reader, tokens);
  reader.expect_end();
  const auto& [samples, length, ids, source, images] = tokens;
  if (samples < 1 || length < 1 || ids.size() % size_t(samples) != 0 ||
      ids.size() / size_t(samples) != size_t(length))
    reader.fail(str("has ", ids.size(), " tokens for ", samples, " samples of ", length));
  return tokens;
}

// JSON: {"module": width, …}
std::string to_bytes(const std::map<std::string, int>& widths) {
  return nlohmann::json(widths).dump();
}

std::map<std::string, int> widths_from_bytes(std::string_view bytes, const std::string& what) {
  const nlohmann::json json = nlohmann::json::parse(bytes, nullptr, false);
  std::map<std::string, int> widths;
  if (!json.is_object()) throw Error(what + ": is not a list of widths");
  for (const auto& [module, width] : json.items()) {
    if (!width.is_number_integer() || width < 2 || width > 8)
      throw Error(what + ": the width of " + module + " is not one");
    widths[module] = width;
  }
  return widths;
}

std::string to_bytes(const ActivationSites& sites, const std::vector<float>& factors,
                     const std::vector<float>& shifts) {
  Writer writer;
  writer(uint64_t(sites.size()));
  for (const auto& [name, grid] : sites) {
    const auto& [kind, bits, step, zero_point, shift, per_octave] = grid;
    writer(name, uint8_t(kind), bits, step, zero_point, shift, per_octave);
  }
  writer(factors, shifts);
  return writer.take();
}

std::tuple<ActivationSites, std::vector<float>, std::vector<float>> sites_from_bytes(
    std::string_view bytes, const std::string& what) {
  Reader reader(bytes, what);
  ActivationSites sites;
  for (uint64_t left = reader.number(); left > 0; --left) {
    std::string name;
    ActivationGrid grid;
    uint8_t kind;
    reader(name, kind, grid.bits, grid.step, grid.zero_point, grid.shift, grid.per_octave);
    if (kind > uint8_t(ActivationGrid::Kind::logarithm)) reader.fail(str("has a grid of kind ", int(kind)));
    grid.kind = ActivationGrid::Kind(kind);
    grid.check(what + ": " + name);
    sites[name] = grid;
  }
  std::vector<float> factors, shifts;
  reader(factors, shifts);
  reader.expect_end();
  if (factors.size() != shifts.size())
    reader.fail(str("has ", factors.size(), " factors and ", shifts.size(), " shifts"));
  return {sites, factors, shifts};
}

}  // namespace ballast
