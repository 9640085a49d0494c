// One weight matrix in one encoding, packed for one backend.
#pragma once

#include <string>
#include <variant>

#include "engine/core/tensor.h"
#include "kernels/encodings/quantized_matrix.h"
#include "kernels/encodings/views.h"

namespace ballast {

class Weight {
 public:
  using Encoding = std::variant<DenseView, AffineView, SparseOutlierView, ResidualBinaryView>;

  Weight() = default;
  /// `source`: host memory, f32, f16 or bf16 [out_features, in_features]; the dtype is kept.
  static Weight dense(Backend& backend, const TensorView& source);
  /// `zero_inputs`: the share of x that is expected to be exactly 0; from kManyZeros on, affine weights below 8 bits
  /// are packed so that one token's zeros are not multiplied. The results are the same bits.
  static Weight quantized(Backend& backend, const QuantizedMatrix& source, double zero_inputs = 0);
  static constexpr double kManyZeros = 0.75;

  explicit operator bool() const { return bool(blob_); }
  const Encoding& encoding() const { return encoding_; }
  int64_t out_features() const;
  int64_t in_features() const;
  /// As a file stores it, on average.
  double bits_per_weight() const;
  /// Bytes that a pass over the whole matrix reads.
  int64_t bytes() const { return blob_.bytes(); }

  /// Calls function(view) with the encoding's view.
  template <class Function>
  decltype(auto) visit(Function&& function) const {
    return std::visit(std::forward<Function>(function), encoding_);
  }

 private:
  template <class View, class Source>
  static Weight pack(Backend& backend, View view, const Source& source);

  Encoding encoding_;
  Tensor blob_;
};

}  // namespace ballast
