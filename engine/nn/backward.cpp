#include "engine/nn/backward.h"

#include <algorithm>
#include <numeric>

#include "engine/nn/tape.h"

namespace ballast::nn {
namespace {

// Runs the op with `targets` or `teacher` set and sums the rows' losses.
double run_loss(const ForwardContext& context, CrossEntropyBackward op) {
  std::vector<double> losses(size_t(op.logits.shape[0]));
  op.loss = losses.data();
  context.backend.run(op);
  return double(op.scale) * std::accumulate(losses.begin(), losses.end(), 0.0);
}

// Token t + 1 of the same sequence, or -1 where there is none.
std::vector<int32_t> next_tokens(const ForwardContext& context) {
  const TensorView& ids = context.batch.ids;
  std::vector<int32_t> tokens(size_t(ids.shape[0]));
  context.backend.copy_to_host(tokens.data(), ids.data, ids.bytes());
  for (const AttentionSpan& span : context.batch.spans) {
    CHECK(span.past == 0, "the loss needs whole sequences");
    const auto first = tokens.begin() + span.first_row, last = first + span.rows;
    std::copy(first + 1, last, first);
    *(last - 1) = -1;
  }
  return tokens;
}

// Forward of one part of the model with every step recorded and every activation kept.
template <class Forward>
void record(const ForwardContext& context, Forward&& forward) {
  const Workspace::Hold hold(context.workspace);
  forward();
}

}  // namespace

Loss next_token_loss(float scale) {
  return [scale](const ForwardContext& context, const OutputView& logits) {
    const std::vector<int32_t> next = next_tokens(context);
    const Workspace::Scope scope(context.workspace);
    const OutputView targets = context.workspace.tensor(DType::i32, {int64_t(next.size())});
    context.backend.copy_to_device(targets.as<void>(), next.data(), targets.bytes());
    return run_loss(context, {.targets = targets, .scale = scale, .logits = logits});
  };
}

Loss likeliest_class_loss(float scale) {
  return [scale](const ForwardContext& context, const OutputView& logits) {
    const int64_t rows = logits.shape[0], classes = logits.shape[1];
    std::vector<float> values(size_t(rows * classes));
    context.backend.copy_to_host(values.data(), logits.data, logits.bytes());
    std::vector<int32_t> likeliest;
    for (auto row = values.begin(); row != values.end(); row += classes)
      likeliest.push_back(int32_t(std::max_element(row, row + classes) - row));
    const Workspace::Scope scope(context.workspace);
    const OutputView targets = context.workspace.tensor(DType::i32, {rows});
    context.backend.copy_to_device(targets.as<void>(), likeliest.data(), targets.bytes());
    return run_loss(context, {.targets = targets, .scale = scale, .logits = logits});
  };
}

Loss distillation_loss(const TensorView& teacher, float scale) {
  return [teacher, scale](const ForwardContext& context, const OutputView& logits) {
    return run_loss(context, {.teacher = teacher, .scale = scale, .logits = logits});
  };
}

double back_propagate(const ForwardContext& context, const BackwardPass& pass) {
  Tape tape;
  Workspace& workspace = context.workspace;
  const ForwardContext plain{context.backend, workspace, context.batch, context.cache};
  const ForwardContext recording{context.backend, workspace,        context.batch,
                                 context.cache,   context.observer, &tape};
  const Workspace::Scope scope(workspace);
  const auto copied = [&](const TensorView& x) {
    const OutputView copy = workspace.floats(x.shape);
    context.backend.copy_to_device(copy.as<void>(), x.data, x.bytes());
    return copy;
  };
  std::vector<OutputView> inputs{copied(pass.hidden)};
  // Where nothing wants to see its output, the last block goes straight into the head, so it is not run twice.
  const bool joined = !pass.blocks.empty() && !pass.hidden_loss;
  for (size_t i = 0; i + size_t(joined) < pass.blocks.size(); ++i) {
    inputs.push_back(copied(inputs.back()));
    pass.blocks[i]->forward(plain, inputs.back());
  }
  const OutputView d_hidden = tape.gradient(recording, inputs.back());
  double loss = 0;
  {
    const Workspace::Scope end(workspace);
    const OutputView logits = workspace.floats({pass.model.logit_rows(context.batch), pass.model.facts().vocab});
    record(recording, [&] {
      if (joined) pass.blocks.back()->forward(recording, inputs.back());
      pass.model.head(recording, inputs.back(), logits);
    });
    loss = pass.loss(plain, logits);
    tape.seed(logits, logits);
    tape.reverse(recording);
  }
  for (size_t i = inputs.size(); i-- > 1;) {
    const Workspace::Scope middle(workspace);
    if (pass.hidden_loss) pass.hidden_loss(i - 1, inputs[i], d_hidden);
    const OutputView moving = copied(inputs[i - 1]);  // what is kept is also the output of the block before
    record(recording, [&] { pass.blocks[i - 1]->forward(recording, moving); });
    tape.seed(moving, d_hidden);
    tape.reverse(recording);
  }
  return loss;
}

}  // namespace ballast::nn
