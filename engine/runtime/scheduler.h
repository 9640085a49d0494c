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

/// What the logits of one row are for.
struct LogitRequest {
  std::shared_ptr<Sequence> sequence;
  int64_t token = 0;  ///< index of the token that the row predicts; sampled if the sequence ends before it

  bool sampled() const { return token == int64_t(sequence->tokens.size()); }
};

struct SchedulerCounters {
  int64_t prompt_tokens = 0;  ///< of sequences that started
  int64_t shared_tokens = 0;  ///< of these, those whose pages were there already
  int64_t generated_tokens = 0;
  int64_t preemptions = 0;
};

/// Waiting sequences start when the cache can hold what they have so far; owners take turns, and the sequences
/// of one start in the order of arrival. When the cache runs out, the sequence that started last gives its pages
/// back and later computes them anew, which gives the same bits. Decode rows and prompt chunks share a batch;
/// prompts share what decoding leaves of it evenly.
class Scheduler {
 public:
  Scheduler(KvCache& cache, int64_t max_positions, const SchedulerLimits& limits)
      : cache_(cache), max_positions_(max_positions), limits_(limits) {}

  /// Error when the prompt leaves no room for one more token, or could never fit the cache.
  void add(std::shared_ptr<Sequence> sequence);
  /// Fills `batch` (cleared first) and remembers what is in it; empty when nothing is left to do. While others
  /// decode, prompts get at most `prompt_rows`.
  void next(Batch& batch, int64_t prompt_rows);
  void next(Batch& batch) { next(batch, limits_.max_batch_tokens); }
  /// What the last batch's logit rows are for, in their order.
  const std::vector<LogitRequest>& wanted() const { return wanted_; }
  /// After the last batch ran: advances its sequences, hands out `tokens` (one per wanted()), retires the
  /// finished.
  void commit(const std::vector<SampledToken>& tokens, int32_t eos_id);
  /// The last batch did not run: its sequences end, with reason `failed`.
  void fail();

  const SchedulerLimits& limits() const { return limits_; }
  bool idle() const { return waiting_.empty() && running_.empty(); }
  int64_t running() const { return int64_t(running_.size()); }
  int64_t waiting() const { return int64_t(waiting_.size()); }
  const SchedulerCounters& counters() const { return counters_; }

 private:
  struct Share {
    std::shared_ptr<Sequence> sequence;
    int64_t rows = 0;
  };

  void drop_cancelled();
  void admit();
  /// The next to start, or the end when none may.
  std::deque<std::shared_ptr<Sequence>>::iterator pick();
  bool start(Sequence& sequence);
  void make_room();
  void preempt_last();
  void plan(int64_t prompt_rows);
  void add_rows(Batch& batch, const Share& share);
  void advance(const Share& share);
  void append(Sequence& sequence, const SampledToken& token, int32_t eos_id);
  void retire();

  KvCache& cache_;
  int64_t max_positions_;
  SchedulerLimits limits_;
  std::deque<std::shared_ptr<Sequence>> waiting_;
  std::vector<std::shared_ptr<Sequence>> running_;  ///< in the order of their start
  std::vector<Share> scheduled_;                    ///< with the rows each has in the batch
  std::vector<LogitRequest> wanted_;
  SchedulerCounters counters_;
};

}  // namespace ballast
