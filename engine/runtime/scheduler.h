// Decides which rows run next. Touches neither device nor text.
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "engine/runtime/batch.h"
#include "engine/runtime/sequence.h"

namespace ballast {

struct SchedulerLimits {
  int64_t max_sequences = 32;      ///< running at once
  int64_t max_batch_tokens = 512;  ///< rows of one pass: long prompts are cut into chunks of what fits
};

/// First come, first served: a waiting sequence starts when the cache can hold all it may ever need, so a
/// running one never has to give way. Decode rows and prompt chunks share a batch.
class Scheduler {
 public:
  Scheduler(KvCache& cache, int64_t max_positions, const SchedulerLimits& limits)
      : cache_(cache), max_positions_(max_positions), limits_(limits) {}

  /// Error when the prompt leaves no room for one more token, or could never fit the cache.
  void add(std::shared_ptr<Sequence> sequence);
  /// Fills `batch` (cleared first) and remembers what is in it; empty when nothing is left to do.
  void next(Batch& batch);
  /// Sequences whose logits the last batch asked for, in the order of its logit rows.
  const std::vector<std::shared_ptr<Sequence>>& sampled() const { return sampled_; }
  /// After the last batch ran: advances its sequences, appends `tokens` (one per sampled()), retires the
  /// finished.
  void commit(const std::vector<SampledToken>& tokens, int32_t eos_id);

  bool idle() const { return waiting_.empty() && running_.empty(); }
  int64_t running() const { return int64_t(running_.size()); }
  int64_t waiting() const { return int64_t(waiting_.size()); }

 private:
  void admit();
  void append(Sequence& sequence, const SampledToken& token, int32_t eos_id);
  void retire();

  KvCache& cache_;
  int64_t max_positions_;
  SchedulerLimits limits_;
  std::deque<std::shared_ptr<Sequence>> waiting_;
  std::vector<std::shared_ptr<Sequence>> running_;
  std::vector<std::pair<std::shared_ptr<Sequence>, int64_t>>
      scheduled_;  ///< with the rows each has in the batch
  std::vector<std::shared_ptr<Sequence>> sampled_;
};

}  // namespace ballast
