#include "engine/io/tokenizer_bpe_merges.h"

#include <algorithm>
#include <array>
#include <queue>
#include <tuple>

namespace ballast {
namespace {

constexpr size_t kShortWord = 48;
constexpr uint32_t kNoMerge = UINT32_MAX;

uint64_t pair_key(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

}  // namespace

size_t BpeMerges::Hash::operator()(uint64_t pair) const {
  pair = (pair ^ pair >> 30) * 0xBF58476D1CE4E5B9u;  // splitmix64's mixing
  pair = (pair ^ pair >> 27) * 0x94D049BB133111EBu;
  return pair ^ pair >> 31;
}

void BpeMerges::add(int32_t left, int32_t right, uint32_t rank, int32_t joined) {
  merges_[pair_key(left, right)] = {rank, joined};
}

const BpeMerges::Merge* BpeMerges::find(int32_t left, int32_t right) const {
  const auto found = merges_.find(pair_key(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

void BpeMerges::apply(std::vector<int32_t>& symbols) const {
  if (symbols.size() <= kShortWord) {
    apply_short(symbols);
  } else {
    apply_long(symbols);
  }
}

void BpeMerges::apply_short(std::vector<int32_t>& symbols) const {
  std::array<Merge, kShortWord> pairs;  // pairs[i] is that of symbols i and i + 1
  size_t count = symbols.size();
  const auto look_up = [&](size_t i) {
    const Merge* merge = find(symbols[i], symbols[i + 1]);
    pairs[i] = merge ? *merge : Merge{kNoMerge, 0};
  };
  for (size_t i = 0; i + 1 < count; ++i) look_up(i);
  while (count > 1) {
    const auto best = std::min_element(pairs.begin(), pairs.begin() + (count - 1),
                                       [](const Merge& a, const Merge& b) { return a.rank < b.rank; });
    if (best->rank == kNoMerge) break;
    const size_t at = best - pairs.begin();
    symbols[at] = best->joined;
    --count;
    for (size_t i = at + 1; i < count; ++i) symbols[i] = symbols[i + 1];
    for (size_t i = at + 1; i + 1 < count; ++i) pairs[i] = pairs[i + 1];
    if (at > 0) look_up(at - 1);
    if (at + 1 < count) look_up(at);
  }
  symbols.resize(count);
}

void BpeMerges::apply_long(std::vector<int32_t>& symbols) const {
  // A list linked both ways in two arrays; a joined symbol stays at its left end, the other end becomes a
  // hole. The queue keeps entries whose pair has changed since; they are known by ids that no longer fit.
  constexpr int32_t kHole = -1;
  struct Entry {
    uint32_t rank;
    uint32_t at;
    int32_t left, right, joined;
    bool operator<(const Entry& other) const { return std::tie(rank, at) > std::tie(other.rank, other.at); }
  };
  const uint32_t end = static_cast<uint32_t>(symbols.size());
  std::vector<uint32_t> next(end), previous(end);
  for (uint32_t i = 0; i < end; ++i) next[i] = i + 1, previous[i] = i - 1;  // previous[0] is never used
  std::vector<Entry> entries;
  const auto entry_at = [&](uint32_t i, auto&& use) {
    if (next[i] == end) return;
    const Merge* merge = find(symbols[i], symbols[next[i]]);
    if (merge) use(Entry{merge->rank, i, symbols[i], symbols[next[i]], merge->joined});
  };
  for (uint32_t i = 0; i < end; ++i) entry_at(i, [&](const Entry& entry) { entries.push_back(entry); });
  std::priority_queue<Entry> queue(std::less<Entry>(), std::move(entries));
  while (!queue.empty()) {
    const Entry entry = queue.top();
    queue.pop();
    const uint32_t at = entry.at, right = next[at];
    if (symbols[at] != entry.left || right == end || symbols[right] != entry.right) continue;
    symbols[at] = entry.joined;
    symbols[right] = kHole;
    next[at] = next[right];
    if (next[at] != end) previous[next[at]] = at;
    const auto push = [&](const Entry& fresh) { queue.push(fresh); };
    if (at != 0) entry_at(previous[at], push);
    entry_at(at, push);
  }
  symbols.erase(std::remove(symbols.begin(), symbols.end(), kHole), symbols.end());
}

}  // namespace ballast
