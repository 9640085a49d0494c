// The shape of a sentencepiece model, checked before the library opens it.
// A model is a protobuf message: pieces = 1 {piece = 1, score = 2, type = 3}, normalizer_spec = 3 and
// denormalizer_spec = 5 {precompiled_charsmap = 2, add_dummy_prefix = 3}, trainer_spec = 2
// {treat_whitespace_as_suffix = 24}.
#include <bit>
#include <cmath>
#include <cstring>

#include "engine/io/json.h"
#include "engine/io/tokenizer_sentencepiece.h"
#include "engine/io/tokenizer_utf8.h"
#include "kernels/check.h"

namespace ballast {
namespace {

constexpr size_t kMaxPieceBytes = 4096;
constexpr size_t kMaxTableBytes = size_t{8} << 20;

/// One field of a protobuf message.
struct Field {
  uint64_t number = 0;
  uint64_t value = 0;      // varint and fixed-width fields
  std::string_view bytes;  // length-delimited fields
  bool delimited = false;
};

/// Reads the fields of one message in order.
class MessageReader {
 public:
  MessageReader(std::string_view bytes, const std::string& what) : rest_(bytes), what_(what) {}

  bool next(Field& field) {
    if (rest_.empty()) return false;
    const uint64_t tag = varint();
    field = Field();
    field.number = tag >> 3;
    switch (tag & 7) {
      case 0:
        field.value = varint();
        break;
      case 1:
        field.value = fixed(8);
        break;
      case 2:
        field.bytes = take(varint());
        field.delimited = true;
        break;
      case 5:
        field.value = fixed(4);
        break;
      default:
        broken("a field of an unknown kind");
    }
    if (field.number == 0) broken("a field without number");
    return true;
  }

 private:
  [[noreturn]] void broken(const char* got) const {
    throw Error(str(what_, ": expected a sentencepiece model, got ", got));
  }
  std::string_view take(uint64_t size) {
    if (size > rest_.size()) broken("a field that ends beyond the file (cut short?)");
    const std::string_view bytes = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return bytes;
  }
  uint64_t fixed(size_t size) {
    uint64_t value = 0;
    std::memcpy(&value, take(size).data(), size);
    return value;
  }
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const uint8_t byte = static_cast<uint8_t>(take(1).front());
      value |= uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return value;
    }
    broken("a number of more than 64 bits");
  }

  std::string_view rest_;
  const std::string& what_;
};

void check_piece(std::string_view message, const std::string& what) {
  MessageReader reader(message, what);
  std::string_view piece;
  for (Field field; reader.next(field);) {
    if (field.number == 1) piece = field.bytes;
    if (field.number == 2 && !std::isfinite(std::bit_cast<float>(static_cast<uint32_t>(field.value)))) {
      throw Error(what + ": score is not finite");
    }
  }
  const bool well_formed =
      valid_utf8_prefix(piece) == piece.size() && piece.find('\0') == std::string_view::npos;
  if (piece.empty() || piece.size() > kMaxPieceBytes || !well_formed) {
    throw Error(str(what, ": expected 1 to ", kMaxPieceBytes, " bytes of UTF-8, got ", piece.size(),
                    " bytes ", shown(piece)));
  }
}

/// The table of a normalization: u32 size of the trie, the trie, then strings that end in NUL. The trie is a
/// double array of u32 units: bits 0-7 and 31 label, 8 has a value, 10-30 offset (times 256 if bit 9); a
/// child for byte c of the node at p is at p ^ offset(p) ^ c if its label is c, the value at p ^ offset(p).
/// Nodes may share children.
class TableCheck {
 public:
  TableCheck(std::string_view table, const std::string& what) : what_(what) {
    uint32_t trie_bytes = 0;
    if (table.size() > kMaxTableBytes) broken(str("more than ", kMaxTableBytes, " bytes"));
    if (table.size() >= sizeof trie_bytes) std::memcpy(&trie_bytes, table.data(), sizeof trie_bytes);
    if (trie_bytes == 0 || trie_bytes % 4 != 0 || trie_bytes >= table.size() - 4) broken("a wrong trie size");
    units_.resize(trie_bytes / 4);
    std::memcpy(units_.data(), table.data() + 4, trie_bytes);
    strings_ = table.substr(4 + trie_bytes);
    if (strings_.back() != '\0' || valid_utf8_prefix(strings_) != strings_.size())
      broken("malformed strings");
    walk();
  }

 private:
  // The library collects at most 32 matches along one path and does not look whether there were more.
  static constexpr uint8_t kMaxMatches = 32;
  static constexpr uint8_t kOpen = 254, kUnseen = 255;

  struct Visit {
    size_t node;
    unsigned next_byte = 0;
    uint8_t below = 0;  // most values on a path below the node
  };

  [[noreturn]] void broken(const std::string& got) const {
    throw Error(str(what_, ": expected a normalization table, got ", got));
  }

  /// First index of the children of `node`; all 256 are inside the array.
  size_t children(size_t node) const {
    const uint32_t unit = units_[node];
    const size_t base = node ^ (size_t{unit >> 10} << ((unit & 0x200) >> 6));
    if ((base | 0xFF) >= units_.size()) broken("a trie that leads outside itself");
    return base;
  }

  bool has_value(size_t node) const {
    if ((units_[node] >> 8 & 1) == 0) return false;
    const size_t value = units_[children(node)] & 0x7FFFFFFF;
    if (value >= strings_.size() || (strings_[value] & 0xC0) == 0x80) broken("a value outside its strings");
    return true;
  }

  void walk() {
    std::vector<uint8_t> matches(units_.size(), kUnseen);  // by node: most values on a path from it downwards
    std::vector<Visit> path{{0}};
    matches[0] = kOpen;
    while (!path.empty()) {
      Visit& visit = path.back();
      const size_t base = children(visit.node);
      size_t child = 0;
      for (; visit.next_byte < 256; ++visit.next_byte) {
        child = base ^ visit.next_byte;
        if ((units_[child] & 0x800000FF) != visit.next_byte) continue;
        if (matches[child] == kOpen) broken("a trie with a loop");
        if (matches[child] == kUnseen) break;
        visit.below = std::max(visit.below, matches[child]);
      }
      if (visit.next_byte < 256) {
        matches[child] = kOpen;
        path.push_back({child});  // its result is read when this byte is looked at again
        continue;
      }
      const uint8_t total = visit.below + (visit.node != 0 && has_value(visit.node));
      if (total > kMaxMatches) broken("more than 32 nested entries");
      matches[visit.node] = total;
      path.pop_back();
    }
  }

  const std::string& what_;
  std::vector<uint32_t> units_;
  std::string_view strings_;
};

}  // namespace

SentencepieceFacts check_sentencepiece_model(const std::string& model, const std::string& file) {
  SentencepieceFacts facts;
  bool space_is_suffix = false;
  int64_t pieces = 0;
  MessageReader reader(model, file);
  for (Field field; reader.next(field);) {
    if (field.number <= 5 && !field.delimited) throw Error(file + ": not a sentencepiece model");
    if (field.number == 1) {
      if (pieces == kMaxVocabulary) throw Error(str(file, ": more than ", kMaxVocabulary, " pieces"));
      check_piece(field.bytes, str(file, ": piece ", pieces));
      ++pieces;
    }
    if (field.number != 2 && field.number != 3 && field.number != 5) continue;
    MessageReader inner(field.bytes, file);
    for (Field part; inner.next(part);) {
      if (field.number == 2) {
        if (part.number == 24) space_is_suffix = part.value != 0;
      } else if (part.number == 2 && !part.bytes.empty()) {
        TableCheck(part.bytes, file + ": precompiled_charsmap");
      } else if (part.number == 3 && field.number == 3) {
        facts.adds_leading_space = part.value != 0;
      }
    }
  }
  if (pieces == 0) throw Error(file + ": expected a sentencepiece model, got no pieces");
  if (space_is_suffix) facts.adds_leading_space = false;
  return facts;
}

}  // namespace ballast
