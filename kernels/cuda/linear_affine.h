// Affine linear layers of one width: which kernel for how many tokens. Instantiated by linear_affine_*.cu, a width each.
#pragma once

#include "kernels/cuda/decode_fragments.h"
#include "kernels/cuda/linear_tokens.h"

namespace ballast {

template <int Bits, class Half>
void CudaBackend::run_halves(const Linear<AffineView>& op) {
  using cuda::AffineMeta;
  const int64_t tokens = op.x.shape[0];
  constexpr int64_t kMostAtOnce =
      32768;  // whole products have a block of the grid's second dimension for each
  if (tokens > kMostAtOnce) {
    for (int64_t first = 0; first < tokens; first += kMostAtOnce)
      run_halves<Bits, Half>(part_of(op, first, std::min(kMostAtOnce, tokens - first)));
    return;
  }
  if (tokens >= decode_tokens_ && !deterministic_) return run_decoded<Bits, Half>(op);
  // Pieces as large as there are tokens for. Small groups leave less room in shared memory, so that a device may not have
  // enough for many tokens at once.
  for (int64_t first = 0; first < tokens;) {
    int64_t count = tokens - first;
    const auto taken = [&]<int TokenTiles>(std::integral_constant<int, TokenTiles>) {
      count = std::min<int64_t>(count, 8 * TokenTiles);
      return count > 4 * TokenTiles &&
             run_tokens<Bits, AffineMeta, Half, TokenTiles>(part_of(op, first, count));
    };
    if (!taken(std::integral_constant<int, 16>()) && !taken(std::integral_constant<int, 8>()) &&
        !taken(std::integral_constant<int, 4>()) && !taken(std::integral_constant<int, 2>()))
      CHECK((count = std::min<int64_t>(count, 8),
             run_tokens<Bits, AffineMeta, Half, 1>(part_of(op, first, count))),
            "a block of eight tokens needs more shared memory than there is");
    first += count;
  }
}

template <int Bits, class Half>
void CudaBackend::run_decoded(const Linear<AffineView>& op) {
  using namespace cuda;
  const FragmentBlob sizes(op.weight);
  const char* const blob = op.weight.data.template as<char>();
  auto* const rows = decoded_.of<uint16_t>(op.weight.out_features * op.weight.in_features);
  launch<DecodeFragments<Bits, Half>>(machine_, {.blocks = sizes.tiles, .blocks_y = sizes.units},
                                      {.codes = reinterpret_cast<const uint32_t*>(blob),
                                       .meta = reinterpret_cast<const AffineMeta*>(blob + sizes.meta_at),
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
