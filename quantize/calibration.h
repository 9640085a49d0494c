// The block-by-block walk: calibration samples as hidden states, moved forward half a block at a time.
//
// Two streams: `quantized` runs through what has been quantized so far and feeds the statistics; `reference`
// runs through the float model and is kept only when drift is to be corrected. Memory is the streams, one
// block (two with a reference) and one attention cache of a few samples, whatever the depth of the model.
#pragma once

#include <memory>
#include <vector>

#include "engine/nn/model.h"
#include "engine/runtime/batch.h"
#include "quantize/data.h"
#include "quantize/statistics.h"

namespace ballast {

/// Hidden states of all samples at one point of the model.
class HiddenStream {
 public:
  HiddenStream(Backend& backend, nn::Model& model, const CalibrationTokens& tokens);

  /// What one pass sees: some whole samples.
  struct Part {
    const nn::ForwardContext& context;
    OutputView hidden;  ///< f32 [tokens, hidden], part of the stream
    int64_t first_row;  ///< of the stream
  };
  /// Runs `body` on every part in order, `observer` seeing the positions of each.
  void for_each_part(StatisticsObserver* observer, const std::function<void(const Part&)>& body);
  /// The same for one part of parts(): how two streams are walked side by side.
  void with_part(int64_t index, StatisticsObserver* observer, const std::function<void(const Part&)>& body);
  int64_t parts() const;
  int64_t rows() const { return hidden_.shape()[0]; }

 private:
  Backend& backend_;
  const CalibrationTokens& tokens_;
  int64_t samples_per_part_;
  Workspace workspace_;
  Tensor hidden_;                        ///< f32 [samples · length, hidden]
  KvCache cache_;                        ///< one layer's worth, written anew by every part
  std::vector<OutputView> cache_views_;  ///< that one, under every layer's index
};

}  // namespace ballast
