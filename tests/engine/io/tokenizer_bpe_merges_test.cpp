#include "engine/io/tokenizer_bpe_merges.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

namespace ballast {
namespace {

using Ids = std::vector<int32_t>;
using List = std::map<std::pair<int32_t, int32_t>, std::pair<uint32_t, int32_t>>;  // pair -> rank, joined

Ids joined_naively(const List& list, Ids symbols) {
  while (true) {
    size_t best = symbols.size();
    uint32_t rank = UINT32_MAX;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto found = list.find({symbols[i], symbols[i + 1]});
      if (found != list.end() && found->second.first < rank) best = i, rank = found->second.first;
    }
    if (best == symbols.size()) return symbols;
    symbols[best] = list.at({symbols[best], symbols[best + 1]}).second;
    symbols.erase(symbols.begin() + static_cast<ptrdiff_t>(best) + 1);
  }
}

TEST(BpeMerges, EqualsTheDefinitionForEveryLength) {
  std::mt19937 random(11);
  for (int round = 0; round < 400; ++round) {
    // Ranks are shuffled against the order in which tokens are made, which real lists are not.
    BpeMerges merges;
    List list;
    std::vector<uint32_t> ranks(60);
    for (uint32_t i = 0; i < ranks.size(); ++i) ranks[i] = i;
    std::shuffle(ranks.begin(), ranks.end(), random);
    int32_t next = 3;
    for (const uint32_t rank : ranks) {
      const int32_t left = static_cast<int32_t>(random() % next),
                    right = static_cast<int32_t>(random() % next);
      if (list.count({left, right})) continue;
      list[{left, right}] = {rank, next};
      merges.add(left, right, rank, next++);
    }
    Ids symbols(random() % 160);
    for (int32_t& symbol : symbols) symbol = static_cast<int32_t>(random() % 3);
    const Ids expected = joined_naively(list, symbols);
    merges.apply(symbols);
    ASSERT_EQ(symbols, expected);
  }
}

TEST(BpeMerges, LeftmostOfEqualRankFirst) {
  BpeMerges merges;
  merges.add(0, 0, 0, 1);
  for (const size_t size : {3, 7, 49, 101}) {
    Ids symbols(size, 0), expected(size / 2, 1);
    expected.push_back(0);
    merges.apply(symbols);
    EXPECT_EQ(symbols, expected);
  }
}

TEST(BpeMerges, NothingToJoin) {
  BpeMerges merges;
  Ids none;
  merges.apply(none);
  EXPECT_TRUE(none.empty());
  merges.add(0, 1, 0, 2);
  Ids symbols(100, 0);
  merges.apply(symbols);
  EXPECT_EQ(symbols, Ids(100, 0));
}

}  // namespace
}  // namespace ballast
