// The activation grids of one model while it is quantized: a sample of calibration data, its gradients, and what was
// chosen (activation_search.h says how).
#pragma once

#include <map>
#include <string>
#include <vector>

#include "engine/io/activation_sites.h"
#include "engine/nn/attention.h"
#include "quantize/calibration.h"
#include "quantize/journal.h"
#include "quantize/range_fold.h"
#include "quantize/recipe.h"

namespace ballast {

/// Images of the stream that grids are searched on: some whole parts.
inline constexpr int64_t kSearchedImages = 8;
/// Of their tokens, about as many are looked at where a layer's input is rounded.
inline constexpr int64_t kSearchedTokens = 700;

class ActivationChooser {
 public:
  /// `journal`: what it holds is taken from there, what is found is added to it; may be null.
  ActivationChooser(Backend& backend, nn::Model& model, Journal* journal, const Recipe& recipe)
      : backend_(backend), model_(model), journal_(journal), recipe_(recipe) {}

  /// Before any site of block `index` is settled, the stream at its input: gradients, unless the journal has all its sites.
  void begin_block(HiddenStream* stream, int64_t index, const nn::Block& block);
  /// Sets the grids of the sites before a branch's layers: of the input of its expand layers, or, with those quantized,
  /// of what lies inside and the input of its last layer, but for layers that are `kept` in float. Returns those that
  /// were set. `stream`: at the input of the branch; may be null where the journal has them.
  /// The input of expand layers may be folded (range_fold.h); `float_branch`, the same branch of the float model where
  /// one runs alongside, then is, too.
  ActivationSites settle(HiddenStream* stream, nn::Branch& branch, nn::Branch* float_branch,
                         bool contract, const std::vector<nn::Linear*>& kept);
  ActivationSites settle_head(HiddenStream* stream);
  /// Of the input of a layer; null: none.
  const RangeFold* fold_of(const std::string& module) const;
  /// Grids and folds of a fresh block as they were settled.
  void apply(nn::Block& block) const;

 private:
  using Layers = std::vector<nn::Linear*>;
  struct Settled {
    ActivationSites sites;
    RangeFold fold;
  };
  const ActivationSites& settle_sites(const std::string& module, const std::vector<nn::ActivationSite>& sites,
                                      const std::function<RangeFold()>& choose);
  /// Gradients by the outputs of block `index` (facts().layers: of the head) of the model as it is, where the stream
  /// stands, behind what is quantized already.
  void gather_squares(HiddenStream& stream, int64_t index);
  RangeFold choose(HiddenStream& stream, nn::Branch& branch, bool contract, bool may_fold);
  std::vector<float> sample(HiddenStream& stream, int64_t width,
                            const std::function<TensorView(const HiddenStream::Part&)>& rows) const;
  RangeFold choose_input(const Layers& layers, std::vector<float> x, int bits, bool may_fold);
  void choose_inner(HiddenStream& stream, nn::AttentionBranch& branch);
  std::vector<std::span<const float>> squares(const Layers& layers) const;
  struct TokenSample {
    std::vector<float> x;
    std::vector<std::vector<float>> squares;  ///< of each layer
    TensorView view;                          ///< of x
  };
  TokenSample thinned(const Layers& layers, const std::vector<float>& x) const;

  Backend& backend_;
  nn::Model& model_;
  Journal* journal_;
  const Recipe& recipe_;
  std::map<std::string, Settled> settled_;             ///< by the first layer that reads the input
  int64_t block_ = -1;                                 ///< whose gradients these are
  std::map<std::string, std::vector<float>> squares_;  ///< by module, g² [tokens, out_features] of the sample
};

}  // namespace ballast
