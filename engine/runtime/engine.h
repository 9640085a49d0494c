// Model, cache, scheduler and runner together: what the command line, the server and self-calibration
// generate with.
#pragma once

#include "engine/runtime/runner.h"
#include "engine/runtime/scheduler.h"

namespace ballast {

struct EngineOptions {
  SchedulerLimits limits;
  int64_t context = 0;          ///< longest sequence, in positions; 0: the model's
  int64_t cache_positions = 0;  ///< of all running sequences together; 0: one context's worth
  CacheType cache_type = CacheType::f32;
  int64_t usable_vocab = 0;     ///< ids from here on have no text and are never sampled; 0: all rows
  /// What a pass may take about while sequences decode: prompts get no more rows than that. 0: no limit.
  double pass_seconds = 0;
};

class Engine {
 public:
  /// Borrows backend and model.
  Engine(Backend& backend, nn::Model& model, const EngineOptions& options);

  void add(std::shared_ptr<Sequence> sequence);
  /// One pass over the next batch; false when there was nothing to do. Not thread-safe. After an exception the
  /// sequences of the batch have failed and the others go on with the next step.
  bool step();
  /// Steps until every sequence is finished.
  void run() {
    while (step()) {
    }
  }

  const Scheduler& scheduler() const { return scheduler_; }
  int64_t context() const { return context_; }
  const KvCache& cache() const { return cache_; }

 private:
  void run_batch();
  std::vector<int32_t> choose_there(int64_t first, const TensorView& logits);
  void answer_here(int64_t first, const TensorView& logits, const std::vector<int32_t>& rows);
  void answer(int64_t index, std::span<const float> logits);
  /// The end token, where it must not come yet; else -1.
  int32_t banned(const Sequence& sequence) const;
  int64_t prompt_rows() const;

  Backend& backend_;
  nn::Model& model_;
  int64_t usable_vocab_;
  int64_t context_;
  KvCache cache_;
  Scheduler scheduler_;
  Runner runner_;
  Batch batch_;
  std::vector<float> logits_;
  std::vector<Candidate> candidates_;
  std::vector<SampledToken> tokens_;
  double pass_seconds_;
  double row_seconds_ = 0;  ///< of a pass with many rows, lately
};

}  // namespace ballast
