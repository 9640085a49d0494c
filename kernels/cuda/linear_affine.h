// Affine linear layers of one width: which kernel for how many tokens. Instantiated by linear_affine_*.cu, a width each.
#pragma once

#include <algorithm>
#include <bit>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/decode_fragments.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear_fragments.h"
#include "kernels/cuda/linear_ops.h"
#include "kernels/cuda/prepare_input.h"
#include "kernels/cuda/weight_blob.h"

namespace ballast {

template <int Bits, class Half, int TokenTiles>
bool CudaBackend::run_tokens(const Linear<AffineView>& op) {
  using namespace cuda;
  using Kernel = LinearFragments<Bits, AffineMeta, Half, TokenTiles>;
  const int chunk = chunk_columns(op.weight.group_size);
  const int64_t shared = Kernel::shared_bytes(chunk);
  if (shared > machine_.facts().shared_bytes) return false;

  const FragmentBlob sizes(op.weight, AffineMeta::kBytes);
  const int64_t stages = stages_of(op.weight.in_features), tokens = Kernel::kTokens;
  const PreparedInput x{.halves = input_.of<uint16_t>(tokens * stages * kStageColumns),
                        .sums = sums_.of<float>(stages * (kStageColumns / chunk) * Kernel::kKinds * tokens),
                        .tokens = int(tokens),
                        .stages = int(stages)};
  using Prepare = PrepareInput<Bits, Half>;
  constexpr int kItems = Prepare::kThreads / dev::kWarp;
  launch<Prepare>(machine_, {.blocks = (tokens * stages + kItems - 1) / kItems},
                  {.x = op.x.as<float>(),
                   .x_stride = op.x.strides[0],
                   .tokens = int(op.x.shape[0]),
                   .in_features = int(op.weight.in_features),
                   .chunk = chunk,
                   .to = x});

  const int64_t row_blocks = (sizes.tiles + Kernel::kWarps - 1) / Kernel::kWarps;
  const int64_t blocks = std::min(row_blocks * stages, linear_blocks());
  const char* const blob = op.weight.data.template as<char>();
  launch<Kernel>(machine_, {.blocks = blocks, .shared_bytes = shared},
                 {.codes = reinterpret_cast<const uint32_t*>(blob),
                  .meta = blob + sizes.code_bytes,
                  .tiles = int(sizes.tiles),
                  .units = int(sizes.units),
                  .groups = int(sizes.groups),
                  .in_features = int(op.weight.in_features),
                  .group_size = int(op.weight.group_size),
                  .chunk_log2 = std::countr_zero(unsigned(chunk)),
                  .x = x,
                  .partials = partials_.of<float>(2 * blocks * Kernel::kBlockRows * tokens),
                  .arrived = arrived_.of<int>(row_blocks, true),
                  .epilogue = epilogue(op)});
  return true;
}

template <int Bits, class Half>
void CudaBackend::run_halves(const Linear<AffineView>& op) {
  const int64_t tokens = op.x.shape[0];
  if (tokens >= kDecodeTokens) return run_decoded<Bits, Half>(op);
  constexpr int64_t kMost = 64;
  for (int64_t first = 0; first < tokens;) {
    int64_t count = std::min(kMost, tokens - first);
    const auto part = [&] { return part_of(op, first, count); };
    // Small groups leave less room in shared memory, so that a device may not have enough for many tokens at once.
    if (count <= 32 || !run_tokens<Bits, Half, 8>(part())) {
      count = std::min<int64_t>(count, 32);
      if (count <= 16 || !run_tokens<Bits, Half, 4>(part())) {
        count = std::min<int64_t>(count, 16);
        if (count <= 8 || !run_tokens<Bits, Half, 2>(part())) {
          count = std::min<int64_t>(count, 8);
          CHECK((run_tokens<Bits, Half, 1>(part())),
                "a block of eight tokens needs more shared memory than there is");
        }
      }
    }
    first += count;
  }
}

template <int Bits, class Half>
void CudaBackend::run_decoded(const Linear<AffineView>& op) {
  using namespace cuda;
  const FragmentBlob sizes(op.weight, AffineMeta::kBytes);
  const char* const blob = op.weight.data.template as<char>();
  auto* const rows = decoded_.of<uint16_t>(op.weight.out_features * op.weight.in_features);
  launch<DecodeFragments<Bits, Half>>(machine_, {.blocks = sizes.units, .blocks_y = sizes.tiles},
                                      {.codes = reinterpret_cast<const uint32_t*>(blob),
                                       .meta = reinterpret_cast<const AffineMeta*>(blob + sizes.code_bytes),
                                       .units = int(sizes.units),
                                       .groups = int(sizes.groups),
                                       .out_features = int(op.weight.out_features),
                                       .in_features = int(op.weight.in_features),
                                       .group_size = int(op.weight.group_size),
                                       .to = rows});
  multiply_halves(Half::kType, rows, op.x, epilogue(op));
}

template <int Bits>
void CudaBackend::run_fragments(const Linear<AffineView>& op) {
  if (half_ == DType::bf16) return run_halves<Bits, dev::BF16>(op);
  run_halves<Bits, dev::F16>(op);
}

}  // namespace ballast
