#include "kernels/ops/cross_entropy.h"

#include <cmath>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/staged.h"

namespace ballast {

using namespace cuda;

namespace {

// What the host makes a row's loss of, in f64.
struct LossParts {
  float top, sum;                  ///< of the logits: log Σ exp z = top + log(sum)
  float teacher_top, teacher_sum;  ///< the same of the teacher's
  float target;                    ///< the target's logit, or Σ r · (teacher − z)
};

// Work partition: a block owns a row, a thread every 256th logit.
struct LossRows {
  static constexpr int kThreads = 256, kBlocks = 4;
  static constexpr int64_t kSharedBytes = kThreads / dev::kWarp * 4;
  struct Args {
    float* logits;
    const float* teacher;  ///< or nullptr:
    const int32_t* targets;
    int64_t logit_stride, teacher_stride;
    int vocab;
    float scale;
    LossParts* parts;
  };

  static BALLAST_DEVICE void run(const Args& args) {
    dev::SharedArena arena;
    const auto s_partial = arena.take<float>(kThreads / dev::kWarp);
    float* z = args.logits + dev::block() * args.logit_stride;
    const int target = args.teacher ? -1 : args.targets[dev::block()];
    LossParts parts{};
    if (!args.teacher && target < 0) {
      for (int i = dev::thread(); i < args.vocab; i += kThreads) z[i] = 0;
      if (dev::thread() == 0) args.parts[dev::block()] = parts;
      return;
    }
    softmax(z, args.vocab, s_partial, parts.top, parts.sum);
    if (!args.teacher) {
      parts.target = z[target];
      dev::sync_block();  // before anybody writes
      for (int i = dev::thread(); i < args.vocab; i += kThreads)
        z[i] = args.scale * (dev::exp(z[i] - parts.top) / parts.sum - (i == target ? 1.0f : 0.0f));
    } else {
      const float* teacher = args.teacher + dev::block() * args.teacher_stride;
      softmax(teacher, args.vocab, s_partial, parts.teacher_top, parts.teacher_sum);
      float cross = 0;
      for (int i = dev::thread(); i < args.vocab; i += kThreads) {
        const float r = dev::exp(teacher[i] - parts.teacher_top) / parts.teacher_sum;
        if (r > 0) cross = dev::fma(r, teacher[i] - z[i], cross);
        z[i] = args.scale * (dev::exp(z[i] - parts.top) / parts.sum - r);
      }
      parts.target = dev::block_sum(cross, s_partial);
    }
    if (dev::thread() == 0) args.parts[dev::block()] = parts;
  }

 private:
  static BALLAST_DEVICE void softmax(const float* z, int count, dev::Shared<float> s_partial, float& top,
                                     float& sum) {
    float largest = -INFINITY, total = 0;
    for (int i = dev::thread(); i < count; i += kThreads) largest = dev::max(largest, z[i]);
    top = dev::block_max(largest, s_partial);
    for (int i = dev::thread(); i < count; i += kThreads) total += dev::exp(z[i] - top);
    sum = dev::block_sum(total, s_partial);
  }
};

}  // namespace

void CudaBackend::run(const CrossEntropyBackward& op) {
  op.check();
  forget_input();
  const int64_t rows = op.logits.shape[0], vocab = op.logits.shape[1];
  if (rows == 0) return;
  if (op.targets && op.targets.device == Device::cpu)
    for (int64_t row = 0; row < rows; ++row)
      CHECK(op.targets.as<int32_t>()[row] < vocab, "cross_entropy: target ", op.targets.as<int32_t>()[row],
            " of ", vocab);
  const Staged logits(machine_, stages_[0], op.logits);
  const float* teacher = nullptr;
  int64_t teacher_stride = 0;
  if (op.teacher) {
    const Staged staged(machine_, stages_[1], op.teacher);
    teacher = staged.as<float>(), teacher_stride = staged.stride();
  }
  LossParts* const parts = stages_[2].of<LossParts>(rows);
  launch<LossRows>(machine_, {.blocks = rows, .shared_bytes = LossRows::kSharedBytes},
                   {.logits = logits.as<float>(),
                    .teacher = teacher,
                    .targets = teacher ? nullptr : numbers(op.targets),
                    .logit_stride = logits.stride(),
                    .teacher_stride = teacher_stride,
                    .vocab = int(vocab),
                    .scale = op.scale,
                    .parts = parts});
  std::vector<LossParts> here(static_cast<size_t>(rows));
  machine_.copy_out(here.data(), parts, rows * int64_t(sizeof(LossParts)));
  logits.put_back();
  for (int64_t row = 0; row < rows; ++row) {
    const LossParts& of = here[size_t(row)];
    const double log_sum = double(of.top) + std::log(double(of.sum));
    if (op.teacher)
      op.loss[row] =
          double(of.target) + log_sum - (double(of.teacher_top) + std::log(double(of.teacher_sum)));
    else
      op.loss[row] = of.sum == 0 ? 0 : log_sum - double(of.target);
  }
}

}  // namespace ballast
