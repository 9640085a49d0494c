#include "kernels/ops/attention.h"

#include <algorithm>
#include <atomic>
#include <bit>

#include "kernels/cpu/attention_whole.h"
#include "kernels/cpu/cpu_backend.h"

namespace ballast {
namespace {

// Below this many multiply-adds a second thread costs more than it saves.
constexpr int64_t kSerialWork = 1 << 15;
// With fewer heads than this for each thread, some would wait for the others' last ones.
constexpr int64_t kHeadsPerThread = 4;

int64_t blocks_of(const AttentionSpan& span) {
  return (span.past + span.rows + kAttentionBlock - 1) / kAttentionBlock;
}

AttentionTask task_for(const Attention& op, const AttentionSpan& span) {
  AttentionTask task{};
  task.q = op.q.row(span.first_row);
  task.k = op.k.row(span.first_row);
  task.v = op.v.row(span.first_row);
  task.q_stride = op.q.strides[0];
  task.k_stride = op.k.strides[0];
  task.v_stride = op.v.strides[0];
  task.cache = op.cache.as<uint8_t>();
  task.coded = op.cache.dtype == DType::u8;
  task.heads = op.heads;
  task.head_dim = op.q.shape[1] / op.heads;
  task.pages = span.pages;
  task.past = span.past;
  task.rows = span.rows;
  task.scale = op.scale;
  task.causal = op.mask == Mask::causal;
  task.out = op.out.row(span.first_row);
  task.out_stride = op.out.strides[0];
  return task;
}

// The whole span at once where there are spans and heads enough for all threads; more cuts would pack keys and values
// more often.
int64_t queries_per_unit(const Attention& op, const AttentionSpan& span, int64_t threads) {
  const int64_t units = int64_t(op.spans.size()) * op.heads;
  const int64_t cuts = units >= 4 * threads ? 1 : 2 * threads;
  return std::min(kWholeQueries, (span.rows + cuts - 1) / cuts);
}

// Whether blocks of positions are shared out, too: where all spans are single rows of few heads. Results do not
// depend on it.
bool shares_blocks(const Attention& op, int64_t threads) {
  if (threads == 1 || int64_t(op.spans.size()) * op.heads >= kHeadsPerThread * threads) return false;
  return std::all_of(op.spans.begin(), op.spans.end(),
                     [](const AttentionSpan& span) { return span.rows == 1; }) &&
         std::any_of(op.spans.begin(), op.spans.end(),
                     [](const AttentionSpan& span) { return blocks_of(span) > 1; });
}

}  // namespace

void CpuBackend::attend_whole(const Attention& op) {
  const int64_t threads = pool_.threads();
  pool_.parallel(threads, [&](int thread, int64_t first_share, int64_t last_share) {
    for (int64_t share = first_share; share < last_share; ++share) {
      int64_t unit = 0;
      for (const AttentionSpan& span : op.spans) {
        const int64_t queries = queries_per_unit(op, span, threads);
        for (int64_t head = 0; head < op.heads; ++head)
          for (int64_t first = 0; first < span.rows; first += queries, ++unit) {
            if (unit % threads != share) continue;
            const WholeAttention part{op, span, head, first, std::min(queries, span.rows - first)};
            part.run(kernels_, thread_scratch(thread, part.scratch_floats()));
          }
      }
    }
  });
}

void CpuBackend::run(const Attention& op) {
  op.check();
  if (!op.cache) return attend_whole(op);
  CHECK(op.cache.contiguous(), "attention: cache has gaps");
  const int64_t head_dim = op.q.shape[1] / op.heads, tokens = op.q.shape[0];
  const auto append = [&](int, int64_t first, int64_t last) {
    for (int64_t unit = first; unit < last; ++unit)
      kernels_.append(task_for(op, op.spans[size_t(unit / op.heads)]), unit % op.heads);
  };
  const int64_t units = int64_t(op.spans.size()) * op.heads;
  if (tokens * op.q.shape[1] < kSerialWork) {
    append(0, 0, units);
  } else {
    pool_.parallel(units, append);
  }
  if (shares_blocks(op, pool_.threads())) return attend_in_parts(op);

  std::atomic<int64_t> next{0};
  const auto attend = [&](int thread, int64_t, int64_t) {
    float* const scratch = thread_scratch(thread, attention_scratch_floats(head_dim));
    int64_t unit = 0, mine = next.fetch_add(1, std::memory_order_relaxed);
    for (const AttentionSpan& span : op.spans) {
      AttentionTask task = task_for(op, span);
      task.scratch = scratch;
      // The late rows of a causal span cost most, so they come first: the small ones fill up the end.
      const int64_t groups = (task.rows + kRowsPerUnit - 1) / kRowsPerUnit;
      for (int64_t head = 0; head < op.heads; ++head)
        for (int64_t group = groups; group-- > 0; ++unit) {
          if (unit != mine) continue;
          kernels_.attend(task, head, group * kRowsPerUnit, std::min((group + 1) * kRowsPerUnit, task.rows));
          mine = next.fetch_add(1, std::memory_order_relaxed);
        }
    }
  };
  int64_t work = 0;
  for (const AttentionSpan& span : op.spans)
    work += int64_t(span.past + span.rows) * span.rows * op.q.shape[1];
  if (work < kSerialWork) {
    attend(0, 0, 1);
  } else {
    pool_.parallel(pool_.threads(), attend);
  }
}

void CpuBackend::attend_in_parts(const Attention& op) {
  const int64_t head_dim = op.q.shape[1] / op.heads, part_floats = attention_part_floats(head_dim);
  int64_t total = 0;
  for (const AttentionSpan& span : op.spans) total += blocks_of(span) * op.heads;
  // Doubled as the sequences grow, not widened at every new block.
  float* const parts = blocks_.floats(int64_t(std::bit_ceil(uint64_t(total * part_floats))));
  std::atomic<int64_t> next{0};
  pool_.parallel(pool_.threads(), [&](int thread, int64_t, int64_t) {
    float* const scratch = thread_scratch(thread, attention_scratch_floats(head_dim));
    int64_t unit = 0, mine = next.fetch_add(1, std::memory_order_relaxed);
    for (const AttentionSpan& span : op.spans) {
      AttentionTask task = task_for(op, span);
      task.scratch = scratch;
      for (int64_t head = 0; head < op.heads; ++head)
        for (int64_t block = 0; block < blocks_of(span); ++block, ++unit) {
          if (unit != mine) continue;
          kernels_.attend_part(task, head, 0, block, parts + unit * part_floats);
          mine = next.fetch_add(1, std::memory_order_relaxed);
        }
    }
  });
  float* from = parts;
  for (const AttentionSpan& span : op.spans)
    for (int64_t head = 0; head < op.heads; ++head, from += blocks_of(span) * part_floats)
      kernels_.join_parts(task_for(op, span), head, 0, blocks_of(span), from);
}

}  // namespace ballast
