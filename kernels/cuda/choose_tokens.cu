#include "kernels/ops/choose_tokens.h"

#include <algorithm>
#include <cmath>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/staged.h"

namespace ballast {

using namespace cuda;

namespace {

// Work partition: a block owns a row. Where the order of ids matters a thread owns a run of them, else every 512th.
struct ChooseRow {
  static constexpr int kThreads = 512, kBlocks = 2, kWarps = kThreads / dev::kWarp;
  struct Args {
    const float* logits;
    const TokenChoice* choices;
    ChosenToken* chosen;
    Candidate* candidates;  ///< [rows, kMostCandidates]
    int64_t stride;
    int usable;
  };
  static constexpr int64_t kSharedBytes = (kThreads + kWarps) * 8 + 2 * kThreads * 4 + kWarps * 4;

  static BALLAST_DEVICE void run(const Args& args) {
    dev::SharedArena arena;
    const auto s_sums = arena.take<double>(kThreads), s_warps = arena.take<double>(kWarps);
    const auto s_more = arena.take<int>(kThreads), s_ties = arena.take<int>(kThreads);
    const auto s_partial = arena.take<float>(kWarps);
    const TokenChoice& choice = args.choices[dev::block()];
    const Row row{args.logits + dev::block() * args.stride, args.usable, choice.banned};
    const float top = largest(row, s_partial);
    const int best = first_of(row, top, s_more);
    double total = 0;
    if (choice.temperature > 0) total = add_weights(row, top, choice.temperature, s_sums, s_warps);
    if (choice.candidates > 0) {
      collect(row, choice.candidates < args.usable ? choice.candidates : args.usable,
              args.candidates + dev::block() * ChooseTokens::kMostCandidates, s_more, s_ties);
    }
    if (dev::thread() > 0) return;
    const bool drawn = choice.temperature > 0 && choice.candidates == 0;
    const int token = drawn ? draw(row, top, choice, total, best, s_sums, s_warps) : best;
    args.chosen[dev::block()] = {token, top, total};
  }

 private:
  struct Row {
    const float* logits;
    int usable, banned;
    BALLAST_DEVICE float get(int id) const {
      const float logit = logits[id];
      return logit != logit || id == banned ? -INFINITY : logit;
    }
    /// In the order of logits; the two zeros are one.
    BALLAST_DEVICE uint32_t key(int id) const {
      const float logit = get(id);
      const uint32_t bits = dev::bits_of(logit == 0 ? 0.0f : logit);
      return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    }
    BALLAST_DEVICE double weight(int id, float top, double temperature) const {
      const double value = dev::exp((double(get(id)) - double(top)) / temperature);
      return value != value ? 0 : value;
    }
    // The run of ids of a thread.
    BALLAST_DEVICE int begin(int thread) const {
      const int each = (usable + kThreads - 1) / kThreads, first = thread * each;
      return first < usable ? first : usable;
    }
  };

  static BALLAST_DEVICE float largest(const Row& row, dev::Shared<float> s_partial) {
    float top = -INFINITY;
    for (int id = dev::thread(); id < row.usable; id += kThreads) top = dev::max(top, row.get(id));
    return dev::block_max(top, s_partial);
  }
  static BALLAST_DEVICE int first_of(const Row& row, float top, dev::Shared<int> s_ids) {
    int first = row.usable;
    for (int id = dev::thread(); id < row.usable && first == row.usable; id += kThreads)
      if (row.get(id) == top) first = id;
    for (int step = dev::kWarp / 2; step > 0; step /= 2) {
      const int other = dev::shuffle_xor(first, step);
      first = other < first ? other : first;
    }
    if (dev::lane() == 0) s_ids.set(dev::warp(), first);
    dev::sync_block();
    for (int warp = 0; warp < kWarps; ++warp) first = s_ids.get(warp) < first ? s_ids.get(warp) : first;
    dev::sync_block();
    return first;
  }

  // Each thread's sum of its run, each warp's of its threads', and the sum of all.
  static BALLAST_DEVICE double add_weights(const Row& row, float top, double temperature,
                                           dev::Shared<double> s_sums, dev::Shared<double> s_warps) {
    double sum = 0;
    for (int id = row.begin(dev::thread()); id < row.begin(dev::thread() + 1); ++id)
      sum += row.weight(id, top, temperature);
    s_sums.set(dev::thread(), sum);
    dev::sync_block();
    if (dev::lane() == 0) {
      double of_warp = 0;
      for (int i = 0; i < dev::kWarp; ++i) of_warp += s_sums.get(dev::thread() + i);
      s_warps.set(dev::warp(), of_warp);
    }
    dev::sync_block();
    double total = 0;
    for (int warp = 0; warp < kWarps; ++warp) total += s_warps.get(warp);
    return total;
  }

  // The first of `count` parts whose sum goes beyond `target`, which loses the sums before; where rounding lets none, the last
  // that is not 0, and a target beyond everything.
  template <class Sum>
  static BALLAST_DEVICE int walk(int count, double& target, int otherwise, Sum&& sum) {
    int last = otherwise;
    for (int i = 0; i < count; ++i) {
      const double here = sum(i);
      if (here == 0) continue;
      last = i;
      if (target < here) return i;
      target -= here;
    }
    target = INFINITY;
    return last;
  }
  static BALLAST_DEVICE int draw(const Row& row, float top, const TokenChoice& choice, double total, int best,
                                 dev::Shared<double> s_sums, dev::Shared<double> s_warps) {
    if (!(total > 0)) return best;
    double target = choice.fraction * total;
    const int warp = walk(kWarps, target, 0, [&](int i) { return s_warps.get(i); });
    const int thread = warp * dev::kWarp +
                       walk(dev::kWarp, target, 0, [&](int i) { return s_sums.get(warp * dev::kWarp + i); });
    const int first = row.begin(thread);
    return first + walk(row.begin(thread + 1) - first, target, 0,
                        [&](int i) { return row.weight(first + i, top, choice.temperature); });
  }

  static BALLAST_DEVICE int block_total(int value, dev::Shared<int> s_counts) {
    for (int step = dev::kWarp / 2; step > 0; step /= 2) value += dev::shuffle_xor(value, step);
    if (dev::lane() == 0) s_counts.set(dev::warp(), value);
    dev::sync_block();
    int total = 0;
    for (int warp = 0; warp < kWarps; ++warp) total += s_counts.get(warp);
    dev::sync_block();
    return total;
  }

  // The `count` likeliest. First the key that the last of them has, two bits at a time from above; then every thread writes
  // what its run has above that key, and as many of the first that have it as there is room for.
  static BALLAST_DEVICE void collect(const Row& row, int count, Candidate* to, dev::Shared<int> s_more,
                                     dev::Shared<int> s_ties) {
    uint32_t last = 0;
    for (int bit = 30; bit >= 0; bit -= 2) {
      int at_least[3] = {};
      for (int id = dev::thread(); id < row.usable; id += kThreads) {
        const uint32_t key = row.key(id);
#pragma unroll
        for (int i = 0; i < 3; ++i) at_least[i] += int(key >= (last | uint32_t(i + 1) << bit));
      }
      uint32_t digit = 0;
#pragma unroll
      for (int i = 0; i < 3; ++i)
        if (block_total(at_least[i], s_more) >= count) digit = uint32_t(i + 1);
      last |= digit << bit;
    }
    const int begin = row.begin(dev::thread()), end = row.begin(dev::thread() + 1);
    int more = 0, ties = 0;
    for (int id = begin; id < end; ++id) {
      more += int(row.key(id) > last);
      ties += int(row.key(id) == last);
    }
    s_more.set(dev::thread(), more);
    s_ties.set(dev::thread(), ties);
    dev::sync_block();
    int more_before = 0, all_more = 0, ties_before = 0;
    for (int i = 0; i < kThreads; ++i) {
      all_more += s_more.get(i);
      if (i >= dev::thread()) continue;
      more_before += s_more.get(i);
      ties_before += s_ties.get(i);
    }
    const int room = count - all_more;  // for ties
    int at = more_before + (ties_before < room ? ties_before : room);
    for (int id = begin; id < end; ++id) {
      const uint32_t key = row.key(id);
      if (key < last || (key == last && ties_before++ >= room)) continue;
      to[at++] = {row.get(id), id};
    }
  }
};

static_assert(sizeof(TokenChoice) % 4 == 0 && std::is_trivially_copyable_v<TokenChoice>);

}  // namespace

void CudaBackend::run(const ChooseTokens& op) {
  op.check();
  const int64_t rows = op.logits.shape[0];
  if (rows == 0) return;
  const Staged logits(machine_, stages_[0], op.logits);
  const bool any = std::any_of(op.choices.begin(), op.choices.end(),
                               [](const TokenChoice& choice) { return choice.candidates > 0; });
  auto* const chosen = stages_[1].of<ChosenToken>(rows);
  auto* const candidates = any ? stages_[2].of<Candidate>(rows * ChooseTokens::kMostCandidates) : nullptr;
  const auto* const choices = reinterpret_cast<const TokenChoice*>(uploads_.on_device(
      reinterpret_cast<const int32_t*>(op.choices.data()), rows * int64_t(sizeof(TokenChoice) / 4)));
  launch<ChooseRow>(machine_, {.blocks = rows, .shared_bytes = ChooseRow::kSharedBytes},
                    {.logits = logits.as<float>(),
                     .choices = choices,
                     .chosen = chosen,
                     .candidates = candidates,
                     .stride = logits.stride(),
                     .usable = int(op.usable)});
  machine_.copy_out(op.chosen.data(), chosen, rows * int64_t(sizeof(ChosenToken)));
  if (any)
    machine_.copy_out(op.candidates.data(), candidates,
                      rows * ChooseTokens::kMostCandidates * int64_t(sizeof(Candidate)));
}

}  // namespace ballast
