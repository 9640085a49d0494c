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

Weight Weight::quantized(Backend& backend, const QuantizedMatrix& source, double zero_inputs) {
  if (const auto* affine = std::get_if<AffineMatrix>(&source)) {
    AffineView facts = affine->facts();
    facts.by_columns = facts.bits < 8 && zero_inputs >= kManyZeros;
    return pack(backend, facts, *affine);
  }
  return std::visit([&](const auto& matrix) { return pack(backend, matrix.facts(), matrix); }, source);
}

int64_t Weight::out_features() const {
  return visit([](const auto& view) { return view.out_features; });
}

int64_t Weight::in_features() const {
  return visit([](const auto& view) { return view.in_features; });
}

double Weight::bits_per_weight() const {
  return visit([](const auto& view) { return view.bits_per_weight(); });
}

}  // namespace ballast
