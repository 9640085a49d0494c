#include "engine/runtime/runner.h"

namespace ballast {
namespace {

// A view of [rows, width] on `tensor`, which is replaced when it is too small.
OutputView sized(Backend& backend, Tensor& tensor, int64_t rows, int64_t width) {
  if (!tensor || tensor.shape()[0] < rows) tensor = Tensor(backend, DType::f32, {rows, width});
  return tensor.view().rows(0, rows);
}

}  // namespace

TensorView Runner::hidden(const Batch& batch) {
  const nn::BatchRows rows = batch.rows();
  const nn::ForwardContext pass = context(rows);
  const OutputView hidden = sized(backend_, hidden_, batch.tokens(), model_.facts().hidden);
  Workspace::Scope scope(workspace_);
  model_.embed(pass, hidden);
  for (int64_t layer = 0; layer < model_.facts().layers; ++layer) model_.block(layer).forward(pass, hidden);
  return hidden;
}

TensorView Runner::logits(const TensorView& hidden_rows, const TensorView& positions) {
  const nn::BatchRows rows{.positions = positions};
  const OutputView out = sized(backend_, logits_, hidden_rows.shape[0], model_.facts().vocab);
  Workspace::Scope scope(workspace_);
  model_.head(context(rows), hidden_rows, out);
  return out;
}

TensorView Runner::logits(const Batch& batch, const TensorView& hidden, int64_t first, int64_t count) {
  const auto rows = std::span(batch.logit_rows()).subspan(size_t(first), size_t(count));
  const OutputView picked = sized(backend_, picked_, count, model_.facts().hidden);
  backend_.run(GatherRows{.x = hidden, .rows = {rows.data(), DType::i32, {count}}, .y = picked});
  picked_positions_.clear();
  for (const int32_t row : rows) picked_positions_.push_back(batch.rows().positions.as<int32_t>()[row]);
  return logits(picked, {picked_positions_.data(), DType::i32, {count}});
}

TensorView Runner::run(const Batch& batch) {
  const TensorView all = hidden(batch);
  if (model_.facts().image) {
    const nn::BatchRows images = batch.rows();
    const OutputView out = sized(backend_, logits_, model_.logit_rows(images), model_.facts().vocab);
    Workspace::Scope scope(workspace_);
    model_.head(context(images), all, out);
    return out;
  }
  const int64_t count = int64_t(batch.logit_rows().size());
  return count == 0 ? TensorView{} : logits(batch, all, 0, count);
}

}  // namespace ballast
