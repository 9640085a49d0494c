// Weight encodings as ops see them: shape facts plus one blob in the layout of the backend that packed it.
// Only the backend reads the blob; everybody else passes it along. To add an encoding: a struct here, a
// `run(const Linear<…>&)`, `run(const Embedding<…>&)` and `pack` in Backend, and an alternative in
// engine/core's Weight.
#pragma once

#include "kernels/view.h"

namespace ballast {

/// Float weights kept as stored: f32, f16 or bf16.
struct DenseView {
  DType dtype = DType::f32;
  int64_t out_features = 0;
  int64_t in_features = 0;
  TensorView data;  ///< u8 blob of Backend::packed_bytes bytes, 64-byte aligned
};

/// Affine grouped weights kept as codes; see encodings/affine.h for the meaning.
struct AffineView {
  int bits = 0;
  int64_t out_features = 0;
  int64_t in_features = 0;
  int64_t group_size = 0;
  TensorView data;  ///< u8 blob of Backend::packed_bytes bytes, 64-byte aligned
};

}  // namespace ballast
