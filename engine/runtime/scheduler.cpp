#include "engine/runtime/scheduler.h"

#include <algorithm>

namespace ballast {

void Scheduler::add(std::shared_ptr<Sequence> sequence) {
  if (sequence->prompt_tokens > max_positions_)
    throw Error(
        str("the prompt has ", sequence->prompt_tokens, " tokens, the context holds ", max_positions_));
  // The last token needs no position of its own: it is never read back.
  const int64_t room = max_positions_ - sequence->prompt_tokens + 1;
  sequence->params.max_tokens = std::min(sequence->params.max_tokens, room);
  sequence->params.min_tokens = std::min(sequence->params.min_tokens, sequence->params.max_tokens);
  const int64_t positions = sequence->prompt_tokens + std::max<int64_t>(0, sequence->params.max_tokens - 1);
  if (KvCache::pages_for(positions) > cache_.pages())
    throw Error(str("the sequence needs a cache of ", positions, " positions, the cache holds ",
                    cache_.pages() * kPagePositions));
  if (sequence->params.max_tokens == 0) {
    sequence->finish = FinishReason::length;
    return;
  }
  waiting_.push_back(std::move(sequence));
}

void Scheduler::admit() {
  while (!waiting_.empty() && int64_t(running_.size()) < limits_.max_sequences) {
    Sequence& sequence = *waiting_.front();
    if (!cache_.reserve(sequence.pages, sequence.prompt_tokens + sequence.params.max_tokens - 1)) return;
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
}

void Scheduler::next(Batch& batch) {
  batch.clear();
  scheduled_.clear();
  sampled_.clear();
  for (auto& sequence : running_)
    if (sequence->cancel_requested) sequence->finish = FinishReason::cancelled;
  std::erase_if(waiting_, [](const auto& sequence) {
    if (sequence->cancel_requested) sequence->finish = FinishReason::cancelled;
    return sequence->finished();
  });
  retire();
  admit();
  int64_t budget = limits_.max_batch_tokens;
  // Sequences that decode first, so that a long prompt never stalls them.
  for (const bool decoding : {true, false}) {
    for (const auto& sequence : running_) {
      const int64_t left = int64_t(sequence->tokens.size()) - sequence->computed;
      if (budget == 0 || (left == 1) != decoding) continue;
      const int64_t rows = std::min(left, budget);
      batch.add(std::span(sequence->tokens).subspan(size_t(sequence->computed), size_t(rows)),
                sequence->computed, sequence->pages);
      scheduled_.emplace_back(sequence, rows);
      budget -= rows;
      if (rows == left) {
        batch.want_logits();
        sampled_.push_back(sequence);
      }
    }
  }
}

void Scheduler::commit(const std::vector<SampledToken>& tokens, int32_t eos_id) {
  CHECK(tokens.size() == sampled_.size());
  for (const auto& [sequence, rows] : scheduled_) sequence->computed += rows;
  for (size_t i = 0; i < tokens.size(); ++i) append(*sampled_[i], tokens[i], eos_id);
  scheduled_.clear();
  sampled_.clear();
  retire();
}

void Scheduler::append(Sequence& sequence, const SampledToken& token, int32_t eos_id) {
  sequence.tokens.push_back(token.id);
  const auto& stops = sequence.params.stop_token_ids;
  const bool ended = (!sequence.params.ignore_eos && token.id == eos_id) ||
                     std::find(stops.begin(), stops.end(), token.id) != stops.end();
  const bool wanted = !sequence.on_token || sequence.on_token(sequence, token);
  if (ended || !wanted) {
    sequence.finish = FinishReason::stop;
  } else if (sequence.generated() >= sequence.params.max_tokens) {
    sequence.finish = FinishReason::length;
  }
}

void Scheduler::retire() {
  for (auto& sequence : running_)
    if (sequence->finished()) cache_.release(sequence->pages);
  std::erase_if(running_, [](const auto& sequence) { return sequence->finished(); });
}

}  // namespace ballast
