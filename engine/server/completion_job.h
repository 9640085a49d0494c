// A completion from its submission to the last byte of its answer. Lives on the I/O thread.
#pragma once

#include "engine/server/completion_format.h"
#include "engine/server/engine_loop.h"
#include "engine/server/http_server.h"
#include "engine/server/metrics.h"
#include "engine/server/worker_pool.h"

namespace ballast::server {

/// What jobs need of the server.
struct JobContext {
  ApiLimits limits;
  Metrics& metrics;
  WorkerPool& workers;
  std::function<void(std::function<void()>)> post;  ///< to the I/O thread
  std::function<void(class CompletionJob&)> on_done;
  std::string fingerprint;
};

class CompletionJob : public Job {
 public:
  /// Makes the sequences of `request`; any thread. `salt`: whose cached prompts it may use; `owner`: whose turn.
  CompletionJob(CompletionRequest request, const JobContext& context, const HttpRequest& http, uint64_t salt,
                uint64_t owner);

  /// Before it is submitted: where the answer goes.
  void answer_to(std::shared_ptr<Reply> reply);
  void on_event(Event& event) override;
  void after_events() override;

  bool done() const { return done_; }
  const CompletionRequest& request() const { return request_; }
  const std::string& id() const { return id_; }
  Clock::time_point received() const { return received_; }
  /// The time limit ended it: answered as far as it came.
  void note_timeout() { timed_out_ = true; }

 private:
  struct Progress {
    Piece piece;  ///< streaming: since the last one sent
    double logprob_sum = 0;
    int64_t generated = 0, prompt_scored = 0;
    Clock::time_point last{};
    bool finished = false, changed = false;
    std::string error;
  };

  std::unique_ptr<Choice> make_choice(const Prompt& prompt, int64_t sibling, uint64_t salt, uint64_t owner);
  GenerationParams params_for(const Prompt& prompt, int64_t sibling) const;
  Piece beginning(const Prompt& prompt) const;
  void take_token(Progress& progress, Event& event);
  void take_finish(Progress& progress, Event& event);
  void stream();
  void finish();
  std::vector<Piece> best();
  Timing timing() const;

  CompletionRequest request_;
  const JobContext& context_;
  std::string id_;
  Clock::time_point received_, first_token_{}, last_token_{};
  CompletionFormat format_;
  std::shared_ptr<Reply> reply_;
  std::vector<Progress> progress_;
  Usage usage_;
  int64_t unfinished_;
  bool started_ = false, streaming_begun_ = false, done_ = false, timed_out_ = false;
};

}  // namespace ballast::server
