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
  int64_t usable_vocab = 0;     ///< ids from here on have no text and are never sampled; 0: all rows
};

class Engine {
 public:
  /// Borrows backend and model.
  Engine(Backend& backend, nn::Model& model, const EngineOptions& options);

  void add(std::shared_ptr<Sequence> sequence);
  /// One pass over the next batch; false when there was nothing to do. Not thread-safe.
  bool step();
  /// Steps until every sequence is finished.
  void run() {
    while (step()) {
    }
  }

  const Scheduler& scheduler() const { return scheduler_; }
  int64_t context() const { return context_; }
  int64_t cache_bytes() const { return cache_.bytes(); }

 private:
  Backend& backend_;
  nn::Model& model_;
  int64_t usable_vocab_;
  int64_t context_;
  KvCache cache_;
  Scheduler scheduler_;
  Runner runner_;
  Batch batch_;
  std::vector<float> logits_;
  std::vector<SampledToken> tokens_;
};

}  // namespace ballast
