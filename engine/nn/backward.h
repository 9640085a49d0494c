// One pass through the end of a model and back: block inputs are kept, each block's forward is computed anew on
// the way back, and every weight gradient goes to the observer in factored form (x, dz) and is dropped. So peak
// memory is one hidden state per block, the activations of one block, and the logits.
#pragma once

#include <functional>
#include <span>

#include "engine/nn/model.h"

namespace ballast::nn {

/// Replaces logits, f32 [tokens, vocab], by their gradient and returns the loss.
using Loss = std::function<double(const ForwardContext& context, const OutputView& logits)>;

/// scale · Σ over sequences and positions of −log p(next token). The batch's spans are whole sequences; each
/// one's last position has no next token.
Loss next_token_loss(float scale = 1);
/// scale · Σ over rows of logits of −log p(likeliest class): what a classifier is most sure of stands for a label.
Loss likeliest_class_loss(float scale = 1);
/// scale · Σ over positions of KL(softmax(teacher) ‖ softmax(logits)). `teacher`: f32 [tokens, vocab], logits or
/// log-probabilities, outlives the loss.
Loss distillation_loss(const TensorView& teacher, float scale = 1);

/// Adds the gradient of a loss at the output of block `index` of the pass: both f32 [tokens, hidden].
using HiddenLoss = std::function<void(size_t index, const TensorView& hidden, const OutputView& gradient)>;

struct BackwardPass {
  Model& model;                    ///< for its head
  std::span<Block* const> blocks;  ///< the last blocks of the model, in order; any copies of them
  TensorView hidden;               ///< f32 [tokens, hidden], input of the first of them; left as it is
  Loss loss;
  HiddenLoss hidden_loss = {};     ///< beside `loss`, or empty
};

/// Returns the loss. The context's observer sees input and gradient of every linear layer of the blocks and of
/// the head once: inputs of a block in forward order, then its gradients in reverse order, last block first.
double back_propagate(const ForwardContext& context, const BackwardPass& pass);

}  // namespace ballast::nn
