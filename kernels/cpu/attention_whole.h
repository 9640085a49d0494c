// Attention over whole sequences without a cache, all products through the inner loop of the linear layers.
#pragma once

#include "kernels/cpu/kernel_table.h"
#include "kernels/ops/attention.h"

namespace ballast {

/// At most so many queries are attended together.
inline constexpr int64_t kWholeQueries = 256;

/// Some queries of one head of one span.
struct WholeAttention {
  const Attention& op;
  const AttentionSpan& span;
  int64_t head;
  int64_t first_query, queries;  ///< of the span

  int64_t scratch_floats() const;
  void run(const KernelTable& kernels, float* scratch) const;
};

}  // namespace ballast
