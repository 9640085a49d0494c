#include "engine/runtime/scheduler.h"

#include <algorithm>
#include <unordered_map>

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
  if (sequence->params.max_tokens == 0 && (!sequence->scores_prompt() || sequence->prompt_tokens == 1)) {
    sequence->finish = FinishReason::length;
    return;
  }
  waiting_.push_back(std::move(sequence));
}

void Scheduler::next(Batch& batch, int64_t prompt_rows) {
  batch.clear();
  scheduled_.clear();
  wanted_.clear();
  drop_cancelled();
  make_room();
  admit();
  plan(prompt_rows);
  for (const Share& share : scheduled_) add_rows(batch, share);
}

void Scheduler::drop_cancelled() {
  for (auto& sequence : running_)
    if (sequence->cancel_requested) sequence->finish = FinishReason::cancelled;
  std::erase_if(waiting_, [](const auto& sequence) {
    if (sequence->cancel_requested) sequence->finish = FinishReason::cancelled;
    return sequence->finished();
  });
  retire();
}

void Scheduler::admit() {
  while (!waiting_.empty() && int64_t(running_.size()) < limits_.max_sequences) {
    const auto next = pick();
    if (next == waiting_.end() || !start(**next)) return;
    running_.push_back(std::move(*next));
    waiting_.erase(next);
  }
}

std::deque<std::shared_ptr<Sequence>>::iterator Scheduler::pick() {
  std::unordered_map<uint64_t, int64_t> load;
  for (const auto& sequence : running_) ++load[sequence->owner];
  auto best = waiting_.end();
  for (auto candidate = waiting_.begin(); candidate != waiting_.end(); ++candidate) {
    const Sequence* const leader = (*candidate)->leader.get();
    // All pages of the prompt that can be shared are full ones.
    if (leader && leader->shares_prefix() && !leader->finished() &&
        leader->published < leader->prompt_tokens / kPagePositions)
      continue;
    if (best == waiting_.end() || load[(*candidate)->owner] < load[(*best)->owner]) best = candidate;
  }
  return best;
}

// One page more than it needs now: a sequence should not have to give way at once.
bool Scheduler::start(Sequence& sequence) {
  const int64_t count = int64_t(sequence.tokens.size());
  if (sequence.shares_prefix()) {
    // The last token's row must run: its logits are wanted.
    const auto known = std::span(sequence.tokens).first(size_t(count - 1));
    sequence.computed = cache_.share(sequence.pages, sequence.params.prefix_salt, known);
    sequence.published = sequence.computed / kPagePositions;
  }
  const int64_t last = sequence.prompt_tokens + std::max<int64_t>(0, sequence.params.max_tokens - 1);
  if (!cache_.reserve(sequence.pages, std::min(count + kPagePositions, last))) {
    cache_.release(sequence.pages);
    sequence.computed = sequence.published = 0;
    return false;
  }
  if (sequence.generated() == 0) {
    sequence.shared = sequence.computed;
    counters_.prompt_tokens += sequence.prompt_tokens;
    counters_.shared_tokens += sequence.shared;
  }
  return true;
}

// Room for one pass of every running sequence. The first to start alone always fits.
void Scheduler::make_room() {
  for (size_t i = 0; i < running_.size(); ++i)
    while (i < running_.size() && !cache_.reserve(running_[i]->pages, int64_t(running_[i]->tokens.size())))
      preempt_last();
}

void Scheduler::preempt_last() {
  Sequence& sequence = *running_.back();
  cache_.release(sequence.pages);
  sequence.computed = sequence.published = 0;
  waiting_.push_front(std::move(running_.back()));
  running_.pop_back();
  ++counters_.preemptions;
}

// Sequences that decode first, so that a long prompt never stalls them.
void Scheduler::plan(int64_t prompt_rows) {
  int64_t budget = limits_.max_batch_tokens;
  std::vector<Share> prompts;
  for (const auto& sequence : running_) {
    if (sequence->rows_left() > 1) {
      prompts.push_back({sequence, sequence->rows_left()});
    } else if (budget > 0) {
      scheduled_.push_back({sequence, 1});
      --budget;
    }
  }
  if (!scheduled_.empty()) budget = std::min(budget, prompt_rows);
  // Short prompts get what they need, the others an even part of the rest.
  std::stable_sort(prompts.begin(), prompts.end(),
                   [](const Share& a, const Share& b) { return a.rows < b.rows; });
  for (size_t i = 0; i < prompts.size() && budget > 0; ++i) {
    const int64_t others = int64_t(prompts.size() - i);
    const int64_t rows = std::min(prompts[i].rows, (budget + others - 1) / others);
    scheduled_.push_back({prompts[i].sequence, rows});
    budget -= rows;
  }
}

void Scheduler::add_rows(Batch& batch, const Share& share) {
  Sequence& sequence = *share.sequence;
  batch.add(std::span(sequence.tokens).subspan(size_t(sequence.computed), size_t(share.rows)),
            sequence.computed, sequence.pages);
  const int64_t end = sequence.computed + share.rows;
  for (int64_t row = sequence.computed; row < end; ++row) {
    const int64_t token = row + 1;
    const bool scored =
        sequence.scores_prompt() && token >= sequence.scored && token < sequence.prompt_tokens;
    if (!scored && token < int64_t(sequence.tokens.size())) continue;
    batch.want_logits(end - 1 - row);
    wanted_.push_back({share.sequence, token});
  }
}

void Scheduler::commit(const std::vector<SampledToken>& tokens, int32_t eos_id) {
  CHECK(tokens.size() == wanted_.size());
  for (const Share& share : scheduled_) advance(share);
  for (size_t i = 0; i < tokens.size(); ++i) {
    Sequence& sequence = *wanted_[i].sequence;
    if (sequence.finished()) continue;
    if (wanted_[i].sampled()) {
      append(sequence, tokens[i], eos_id);
      continue;
    }
    sequence.scored = wanted_[i].token + 1;
    if (sequence.on_token && !sequence.on_token(sequence, tokens[i])) sequence.finish = FinishReason::stop;
  }
  for (const Share& share : scheduled_) {
    Sequence& sequence = *share.sequence;
    if (!sequence.finished() && sequence.params.max_tokens == 0 && sequence.rows_left() == 0)
      sequence.finish = FinishReason::length;
  }
  scheduled_.clear();
  wanted_.clear();
  retire();
}

void Scheduler::advance(const Share& share) {
  Sequence& sequence = *share.sequence;
  sequence.computed += share.rows;
  const int64_t full = sequence.computed / kPagePositions;
  if (!sequence.shares_prefix() || full == sequence.published) return;
  cache_.publish(sequence.pages, sequence.params.prefix_salt, sequence.tokens, sequence.published, full);
  sequence.published = full;
}

void Scheduler::append(Sequence& sequence, const SampledToken& token, int32_t eos_id) {
  sequence.tokens.push_back(token.id);
  ++counters_.generated_tokens;
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

void Scheduler::fail() {
  for (const Share& share : scheduled_) share.sequence->finish = FinishReason::failed;
  scheduled_.clear();
  wanted_.clear();
  retire();
}

void Scheduler::retire() {
  for (auto& sequence : running_)
    if (sequence->finished()) cache_.release(sequence->pages);
  std::erase_if(running_, [](const auto& sequence) { return sequence->finished(); });
}

}  // namespace ballast
