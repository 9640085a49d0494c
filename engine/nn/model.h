// A model as the engine and the quantizer see it: ends that belong to one architecture, blocks that all
// share.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/nn/branch.h"

namespace ballast::nn {

/// How a model sees images. Patches go row by row from the top left; the values of one are [channels, patch_height,
/// patch_width].
struct ImageFacts {
  int64_t height = 0, width = 0, channels = 0;
  int64_t patch_height = 0, patch_width = 0;
  int64_t tokens = 0;  ///< of one image: its patches and what the model puts before them

  int64_t patches() const { return (height / patch_height) * (width / patch_width); }
  int64_t patch_values() const { return channels * patch_height * patch_width; }
};

/// Facts that do not depend on how the weights are stored.
struct ModelFacts {
  std::string architecture;  ///< "opt", "vit"
  int64_t hidden = 0;        ///< width of the stream between blocks
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t ffn = 0;
  int64_t vocab = 0;          ///< rows of the head: tokens or classes
  int64_t max_positions = 0;  ///< longest sequence
  int32_t bos_id = -1;        ///< -1: none
  int32_t eos_id = -1;
  std::optional<ImageFacts> image;  ///< of models that read images instead of text
};

class Model {
 public:
  Model() = default;
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;
  virtual ~Model() = default;

  const ModelFacts& facts() const { return facts_; }

  /// hidden: f32 [tokens, facts().hidden] from the batch's ids or patches, and positions.
  virtual void embed(const ForwardContext& context, const OutputView& hidden) = 0;
  /// logits: f32 [rows, vocab] from `hidden` f32 [rows, facts().hidden]; whatever comes after the last block. Of
  /// images, `hidden` is the whole batch and there is one row of logits for each.
  virtual void head(const ForwardContext& context, const TensorView& hidden, const OutputView& logits) = 0;
  /// The input of the last linear of `head` (after the final norm and projection), f32 [rows, width].
  virtual TensorView head_input(const ForwardContext& context, const TensorView& hidden) = 0;
  /// Rows of logits that `head` makes of a whole batch.
  int64_t logit_rows(const BatchRows& batch) const {
    return facts_.image ? int64_t(batch.spans.size()) : batch.tokens();
  }

  /// Block `index`, loading it if it is not there. Blocks stay until unloaded.
  Block& block(int64_t index);
  /// A fresh copy of block `index` that belongs to the caller.
  std::unique_ptr<Block> make_block(int64_t index) const { return load_block_(index); }
  void unload_block(int64_t index) { blocks_[size_t(index)].reset(); }
  void load_all();

  /// Linear layers outside the blocks, in the order they run (project_in, project_out).
  virtual std::vector<Linear*> outer_linears() { return {}; }
  /// The matrix that makes logits; tied models embed with it too.
  virtual Linear& lm_head() = 0;
  virtual bool tied_head() const = 0;

  /// Weight bytes that one decoded token reads, loaded blocks only.
  int64_t bytes_per_token();

 protected:
  ModelFacts facts_;
  std::function<std::unique_ptr<Block>(int64_t index)> load_block_;
  std::vector<std::unique_ptr<Block>> blocks_;
};

}  // namespace ballast::nn
