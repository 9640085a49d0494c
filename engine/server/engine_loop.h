// The thread that owns the engine. Jobs come in through a queue, what their tokens became goes out in one batch of
// events a step.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine/runtime/engine.h"
#include "engine/runtime/text_stream.h"
#include "engine/server/http_message.h"

namespace ballast::server {

class Job;

/// What happened to one choice of a job.
struct Event {
  enum class Kind : uint8_t { started, prompt_token, token, finished };
  std::shared_ptr<Job> job;
  int32_t choice = 0;
  Kind kind = Kind::token;
  SampledToken token;       ///< of prompt_token and token
  int64_t text_offset = 0;  ///< characters of text before the token
  std::string text;         ///< text that became certain; with `finished`, the rest
  FinishReason finish = FinishReason::none;
  bool by_stop_string = false;
  int64_t shared_tokens = 0;  ///< of `started`: prompt tokens that were in the cache
  std::string error;          ///< of `finished` with reason failed
  Clock::time_point at{};
};

/// One of the texts that a job generates. Belongs to the engine's thread once its job is submitted.
struct Choice {
  explicit Choice(TextStream stream) : text(std::move(stream)) {}

  std::shared_ptr<Sequence> sequence;
  TextStream text;
  bool started = false, reported = false;
};

/// A request's sequences. Whoever submits it keeps what else belongs to the request in a derived class.
class Job : public std::enable_shared_from_this<Job> {
 public:
  virtual ~Job() = default;
  /// An event of this job, on the thread that events are delivered to.
  virtual void on_event(Event& event) = 0;
  /// After the events of one step.
  virtual void after_events() = 0;

  std::vector<std::unique_ptr<Choice>> choices;
};

/// What the engine was doing after its last step.
struct EngineStatus {
  int64_t running = 0, waiting = 0;  ///< sequences
  int64_t used_pages = 0, pages = 0;
  SchedulerCounters counters;
};

class EngineLoop {
 public:
  /// Called on the engine's thread with the events of a step.
  using Deliver = std::function<void(std::vector<Event>)>;
  /// Borrows both. Nothing is called before run().
  EngineLoop(Engine& engine, Deliver deliver) : engine_(engine), deliver_(std::move(deliver)) {}

  /// Steps until stop(), on the caller's thread. A step that throws fails the sequences of its batch; when the next
  /// one throws too, all others fail and the exception goes on to the caller.
  void run();
  void stop();

  // From any thread.
  void submit(std::shared_ptr<Job> job);
  void cancel(std::shared_ptr<Job> job);
  void cancel_all();
  EngineStatus status() const;

 private:
  void take_inbox();
  void add(const std::shared_ptr<Job>& job);
  void add(const std::shared_ptr<Job>& job, int32_t index);
  bool on_token(Job& job, int32_t index, const Sequence& sequence, const SampledToken& token);
  void fail_all(const std::string& reason);
  void report(Clock::time_point step_start);
  void report(Job& job, int32_t index, Clock::time_point step_start);
  void note_status();
  void flush();

  Engine& engine_;
  Deliver deliver_;
  std::vector<std::shared_ptr<Job>> jobs_;
  std::vector<Event> events_;
  std::string failure_;  ///< of the last step

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::shared_ptr<Job>> submitted_, cancelled_;
  bool stopping_ = false, cancel_all_ = false;
  EngineStatus status_;
};

}  // namespace ballast::server
