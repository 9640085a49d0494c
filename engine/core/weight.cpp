#include "engine/core/weight.h"

namespace ballast {

template <class View, class Source>
Weight Weight::pack(Backend& backend, View view, const Source& source) {
  Weight weight;
  weight.blob_ = Tensor(backend, DType::u8, {backend.packed_bytes(view)});
  backend.pack(source, view, weight.blob_.view().template as<void>());
  view.data = weight.blob_.view();
  weight.encoding_ = view;
  return weight;
}

Weight Weight::dense(Backend& backend, const TensorView& source) {
  return pack(backend, DenseView{source.dtype, source.shape[0], source.shape[1], {}}, source);
}

Weight Weight::affine(Backend& backend, const AffineMatrix& source) {
  return pack(backend,
              AffineView{source.bits, source.out_features, source.in_features, source.group_size, {}},
              source);
}

Weight Weight::quantized(Backend& backend, const QuantizedMatrix& source) {
  if (const auto* matrix = std::get_if<AffineMatrix>(&source)) return affine(backend, *matrix);
  throw Error("this encoding has no kernels yet");
}

int64_t Weight::out_features() const {
  return visit([](const auto& view) { return view.out_features; });
}

int64_t Weight::in_features() const {
  return visit([](const auto& view) { return view.in_features; });
}

}  // namespace ballast
