#include "kernels/ops/attention.h"

#include <algorithm>

#include "kernels/cpu/attention_whole.h"
#include "kernels/cpu/cpu_backend.h"

namespace ballast {
namespace {

// Rows of one head that one unit of work attends: a multiple of kQueryBlock, small enough that the long rows
// at the end of a causal span are spread over the threads.
constexpr int64_t kRowsPerUnit = 16;

AttentionTask task_for(const Attention& op, const AttentionSpan& span) {
  AttentionTask task{};
  task.q = op.q.row(span.first_row);
  task.k = op.k.row(span.first_row);
  task.v = op.v.row(span.first_row);
  task.q_stride = op.q.strides[0];
  task.k_stride = op.k.strides[0];
  task.v_stride = op.v.strides[0];
  task.cache = op.cache.as<float>();
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
  const int64_t spans = int64_t(op.spans.size());
  pool_.parallel(spans * op.heads, [&](int, int64_t first, int64_t last) {
    for (int64_t unit = first; unit < last; ++unit)
      kernels_.append(task_for(op, op.spans[size_t(unit / op.heads)]), unit % op.heads);
  });
  // Units are dealt out in turn, not in contiguous ranges: late rows of a causal span cost more than early
  // ones.
  const int64_t threads = pool_.threads();
  pool_.parallel(threads, [&](int thread, int64_t first_share, int64_t last_share) {
    for (int64_t share = first_share; share < last_share; ++share) {
      int64_t unit = 0;
      for (const AttentionSpan& span : op.spans) {
        AttentionTask task = task_for(op, span);
        task.scratch = thread_scratch(thread, attention_scratch_floats(task.past + task.rows, task.head_dim));
        for (int64_t row = 0; row < span.rows; row += kRowsPerUnit)
          for (int64_t head = 0; head < op.heads; ++head, ++unit)
            if (unit % threads == share)
              kernels_.attend(task, head, row, std::min(row + kRowsPerUnit, task.rows));
      }
    }
  });
}

}  // namespace ballast
