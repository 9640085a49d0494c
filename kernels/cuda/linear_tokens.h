// Linear layers with weights in fragments, up to 128 tokens at once.
#pragma once

#include <algorithm>
#include <bit>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear_fragments.h"
#include "kernels/cuda/linear_ops.h"
#include "kernels/cuda/prepare_input.h"
#include "kernels/cuda/weight_blob.h"

namespace ballast {

/// False, and nothing done, where a block would need more shared memory than the device has. There are at most
/// 8 · TokenTiles tokens.
template <int Bits, class Meta, class Half, int TokenTiles, class View>
bool CudaBackend::run_tokens(const Linear<View>& op) {
  using namespace cuda;
  using Kernel = LinearFragments<Bits, Meta, Half, TokenTiles>;
  const int chunk = chunk_columns(group_columns(op.weight));
  const int64_t shared = Kernel::shared_bytes(chunk);
  if (shared > machine_.facts().shared_bytes) return false;

  const FragmentBlob sizes(op.weight);
  const int64_t stages = sizes.stages, tokens = Kernel::kTokens;
  constexpr int kInputBits = Meta::kTables ? 4 : Bits;  // looked-up values keep no offset
  Prepared wanted{.x = op.x.data,
                  .x_stride = op.x.strides[0],
                  .tokens = op.x.shape[0],
                  .in_features = op.weight.in_features,
                  .bits = kInputBits,
                  .chunk = chunk,
                  .to = {.tokens = int(tokens), .stages = int(stages)}};
  if (!prepared_.holds(wanted)) {
    wanted.to.halves = input_.of<uint16_t>(tokens * stages * kStageColumns);
    wanted.to.sums = sums_.of<float>(stages * (kStageColumns / chunk) * Kernel::kKinds * tokens);
    using Prepare = PrepareInput<kInputBits, Half>;
    constexpr int kItems = Prepare::kThreads / dev::kWarp;
    launch<Prepare>(machine_, {.blocks = (tokens * stages + kItems - 1) / kItems},
                    {.x = op.x.template as<float>(),
                     .x_stride = op.x.strides[0],
                     .tokens = int(op.x.shape[0]),
                     .in_features = int(op.weight.in_features),
                     .chunk = chunk,
                     .to = wanted.to});
    prepared_ = wanted;
  }
  const PreparedInput x = prepared_.to;

  const int64_t row_blocks = (sizes.tiles + Kernel::kWarps - 1) / Kernel::kWarps;
  const int64_t blocks = std::min(row_blocks * stages, linear_blocks());
  const char* const blob = op.weight.data.template as<char>();
  launch<Kernel>(machine_, {.blocks = blocks, .shared_bytes = shared},
                 {.codes = reinterpret_cast<const uint32_t*>(blob),
                  .meta = blob + sizes.meta_at,
                  .outlier_begins = reinterpret_cast<const uint32_t*>(blob + sizes.begins_at),
                  .outliers = reinterpret_cast<const uint32_t*>(blob + sizes.outliers_at),
                  .salient = reinterpret_cast<const uint32_t*>(blob + sizes.begins_at),
                  .tiles = int(sizes.tiles),
                  .units = int(sizes.units),
                  .groups = int(sizes.groups),
                  .in_features = int(op.weight.in_features),
                  .group_size = int(group_columns(op.weight)),
                  .chunk_log2 = std::countr_zero(unsigned(chunk)),
                  .x = x,
                  .partials = partials_.of<float>(2 * blocks * Kernel::kBlockRows * tokens),
                  .arrived = arrived_.of<int>(row_blocks, true),
                  .epilogue = epilogue(op)});
  forget_input_under(op.y);
  return true;
}

}  // namespace ballast
