#include "engine/server/engine_loop.h"

#include <spdlog/spdlog.h>

#include <algorithm>

namespace ballast::server {

void EngineLoop::submit(std::shared_ptr<Job> job) {
  {
    const std::lock_guard lock(mutex_);
    submitted_.push_back(std::move(job));
  }
  wake_.notify_one();
}

void EngineLoop::cancel(std::shared_ptr<Job> job) {
  {
    const std::lock_guard lock(mutex_);
    cancelled_.push_back(std::move(job));
  }
  wake_.notify_one();
}

void EngineLoop::cancel_all() {
  {
    const std::lock_guard lock(mutex_);
    cancel_all_ = true;
  }
  wake_.notify_one();
}

void EngineLoop::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
}

EngineStatus EngineLoop::status() const {
  const std::lock_guard lock(mutex_);
  return status_;
}

void EngineLoop::run() {
  bool failed = false;
  for (;;) {
    take_inbox();
    {
      std::unique_lock lock(mutex_);
      if (engine_.scheduler().idle())
        wake_.wait(lock,
                   [this] { return stopping_ || cancel_all_ || !submitted_.empty() || !cancelled_.empty(); });
      if (stopping_) return;
      if (engine_.scheduler().idle()) continue;
    }
    const Clock::time_point start = Clock::now();
    try {
      engine_.step();
      failed = false;
    } catch (const std::exception& error) {
      failure_ = error.what();
      spdlog::error("a step failed: {}", failure_);
      if (failed) {
        fail_all(failure_);
        throw;
      }
      failed = true;
    }
    report(start);
  }
}

void EngineLoop::take_inbox() {
  std::vector<std::shared_ptr<Job>> submitted, cancelled;
  bool all = false;
  {
    const std::lock_guard lock(mutex_);
    submitted.swap(submitted_);
    cancelled.swap(cancelled_);
    std::swap(all, cancel_all_);
  }
  for (const auto& job : submitted) add(job);
  for (const auto& job : all ? jobs_ : cancelled)
    for (const auto& choice : job->choices) choice->sequence->cancel_requested = true;
  if (!submitted.empty() || !cancelled.empty() || all) report(Clock::now());
}

void EngineLoop::add(const std::shared_ptr<Job>& job) {
  jobs_.push_back(job);
  for (int32_t i = 0; i < int32_t(job->choices.size()); ++i) add(job, i);
}

void EngineLoop::add(const std::shared_ptr<Job>& job, int32_t index) {
  Sequence& sequence = *job->choices[size_t(index)]->sequence;
  sequence.on_token = [this, owner = job.get(), index](const Sequence& of, const SampledToken& token) {
    return on_token(*owner, index, of, token);
  };
  try {
    engine_.add(job->choices[size_t(index)]->sequence);
  } catch (const std::exception& error) {
    failure_ = error.what();
    sequence.finish = FinishReason::failed;
  }
}

bool EngineLoop::on_token(Job& job, int32_t index, const Sequence& sequence, const SampledToken& token) {
  Choice& choice = *job.choices[size_t(index)];
  Event event{.job = job.shared_from_this(), .choice = index, .token = token, .at = Clock::now()};
  if (sequence.generated() == 0) {
    event.kind = Event::Kind::prompt_token;
    events_.push_back(std::move(event));
    return true;
  }
  event.text_offset = choice.text.characters();
  const auto& stops = sequence.params.stop_token_ids;
  if (std::find(stops.begin(), stops.end(), token.id) == stops.end()) event.text = choice.text.push(token.id);
  events_.push_back(std::move(event));
  return !choice.text.stopped();
}

void EngineLoop::fail_all(const std::string& reason) {
  failure_ = reason;
  for (const auto& job : jobs_)
    for (const auto& choice : job->choices)
      if (!choice->sequence->finished()) choice->sequence->finish = FinishReason::failed;
  report(Clock::now());
}

void EngineLoop::report(Clock::time_point step_start) {
  for (const auto& job : jobs_)
    for (int32_t i = 0; i < int32_t(job->choices.size()); ++i) report(*job, i, step_start);
  std::erase_if(jobs_, [](const auto& job) {
    return std::all_of(job->choices.begin(), job->choices.end(),
                       [](const auto& choice) { return choice->reported; });
  });
  note_status();
  flush();
}

void EngineLoop::report(Job& job, int32_t index, Clock::time_point step_start) {
  Choice& choice = *job.choices[size_t(index)];
  const Sequence& sequence = *choice.sequence;
  if (!choice.started && (sequence.computed > 0 || sequence.finished())) {
    choice.started = true;
    events_.push_back({.job = job.shared_from_this(),
                       .choice = index,
                       .kind = Event::Kind::started,
                       .shared_tokens = sequence.shared,
                       .at = step_start});
  }
  if (!sequence.finished() || choice.reported) return;
  choice.reported = true;
  Event event{.job = job.shared_from_this(),
              .choice = index,
              .kind = Event::Kind::finished,
              .text = choice.text.flush(),
              .finish = sequence.finish,
              .by_stop_string = choice.text.stopped(),
              .at = Clock::now()};
  if (sequence.finish == FinishReason::failed) event.error = failure_;
  events_.push_back(std::move(event));
}

void EngineLoop::note_status() {
  const Scheduler& scheduler = engine_.scheduler();
  const std::lock_guard lock(mutex_);
  status_ = {.running = scheduler.running(),
             .waiting = scheduler.waiting(),
             .used_pages = engine_.cache().pages() - engine_.cache().free_pages(),
             .pages = engine_.cache().pages(),
             .counters = scheduler.counters()};
}

void EngineLoop::flush() {
  if (events_.empty()) return;
  std::vector<Event> events;
  events.swap(events_);
  deliver_(std::move(events));
}

}  // namespace ballast::server
