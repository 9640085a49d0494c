// The block-by-block walk: calibration samples as hidden states, moved forward half a block at a time.
//
// Two streams: `quantized` runs through what has been quantized so far and feeds the statistics; `reference`
// runs through the float model and is kept only when drift is to be corrected. Memory is the streams, one
// block (two with a reference) and one attention cache of a few samples, whatever the depth of the model.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "engine/nn/model.h"
#include "engine/runtime/batch.h"
#include "quantize/data.h"

namespace ballast {

/// Rows of one pass over the stream: some whole samples.
int64_t calibration_part_rows(int64_t samples, int64_t length);

/// Activations [rows, width] of all samples, kept as scaled binary16 (ops/half_rows.h): GPTQ's released code
/// keeps its layer inputs in binary16, too.
class StoredRows {
 public:
  StoredRows() = default;
  StoredRows(Backend& backend, int64_t rows, int64_t width);

  explicit operator bool() const { return bool(halves_); }
  int64_t rows() const { return halves_.shape()[0]; }
  int64_t width() const { return halves_.shape()[1]; }
  int64_t bytes() const { return halves_.bytes() + scales_.bytes(); }
  /// x: f32 [count, width], the rows from `first` on.
  void store(Backend& backend, int64_t first, const TensorView& x) const;
  void load(Backend& backend, int64_t first, const OutputView& x) const;

 private:
  Tensor halves_;  ///< f16 [rows, width]
  Tensor scales_;  ///< f32 [rows]
};

/// Hidden states of all samples at one point of the model.
class HiddenStream {
 public:
  HiddenStream(Backend& backend, nn::Model& model, const CalibrationTokens& tokens);

  /// What one pass sees: some whole samples.
  struct Part {
    const nn::ForwardContext& context;
    OutputView hidden;  ///< f32 [tokens, hidden]; what the pass leaves here becomes the stream
    int64_t first_row;  ///< of the stream
  };
  /// Runs `body` on every part in order.
  void for_each_part(const std::function<void(const Part&)>& body);
  /// The same for one part of parts(): how two streams are walked side by side.
  void with_part(int64_t index, const std::function<void(const Part&)>& body) {
    walk_part(index, body, true);
  }
  int64_t parts() const;
  int64_t rows() const { return hidden_.rows(); }

 private:
  void walk_part(int64_t index, const std::function<void(const Part&)>& body, bool load);

  Batch batch_of(int64_t first, int64_t count, std::vector<PageTable>& pages, bool with_patches);

  Backend& backend_;
  const nn::ModelFacts& facts_;
  const CalibrationTokens& tokens_;
  int64_t samples_per_part_;
  Workspace workspace_;
  StoredRows hidden_;                    ///< [samples · length, hidden]
  KvCache cache_;                        ///< one layer's worth, written anew by every part; images need none
  std::vector<OutputView> cache_views_;  ///< that one, under every layer's index
};

}  // namespace ballast
