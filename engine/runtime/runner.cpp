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

TensorView Runner::run(const Batch& batch) {
  const TensorView all = hidden(batch);
  if (model_.facts().image) {
    const nn::BatchRows images = batch.rows();
    const OutputView out = sized(backend_, logits_, model_.logit_rows(images), model_.facts().vocab);
    Workspace::Scope scope(workspace_);
    model_.head(context(images), all, out);
    return out;
  }
  const auto& wanted = batch.logit_rows();
  if (wanted.empty()) return {};
  const Shape rows{int64_t(wanted.size())};
  const OutputView picked = sized(backend_, picked_, rows[0], model_.facts().hidden);
  backend_.run(GatherRows{.x = all, .rows = {wanted.data(), DType::i32, rows}, .y = picked});
  picked_positions_.clear();
  for (const int32_t row : wanted) picked_positions_.push_back(batch.rows().positions.as<int32_t>()[row]);
  return logits(picked, {picked_positions_.data(), DType::i32, rows});
}

}  // namespace ballast
