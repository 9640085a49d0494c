// The server: routes, who may use them, and its life from loading to drained.
#pragma once

#include <set>

#include "engine/server/api_keys.h"
#include "engine/server/completion_job.h"
#include "engine/server/image_loop.h"

namespace ballast::server {

/// Whose cached prompts a request may use. Sharing shows in the time to the first token.
enum class PrefixSharing : uint8_t { everyone, same_key, none };

struct ServiceOptions {
  HttpOptions http;
  std::string api_key_file;               ///< empty: nobody needs a key
  std::vector<std::string> cors_origins;  ///< "*": all
  int64_t max_queue = 192;                ///< sequences or images that may wait beside those that run
  PrefixSharing sharing = PrefixSharing::everyone;
  double request_seconds = 0;  ///< a request ends after that long; 0: never
  double drain_seconds = 30;   ///< for running requests after SIGTERM
  bool metrics = true, page = true, slots = true;
  std::string version;  ///< "0.1.0 (commit)"
  int workers = 2;
};

/// What is served, text or images. Everything is borrowed.
struct ServedModel {
  std::string name;
  nlohmann::json facts;  ///< for people: bits per weight, sizes
  int64_t slots = 0;     ///< sequences or images that run together
  bool strict_name = false;

  // A model of text: `engine` and `tokenizer` are there.
  Engine* engine = nullptr;
  const Tokenizer* tokenizer = nullptr;
  const ChatTemplate* chat = nullptr;  ///< may be null
  int64_t usable_vocab = 0;
  int max_logprobs = 5;

  // An image classifier: `images` is there.
  ImageClassifier* images = nullptr;
  std::vector<std::string> class_names = {};
  uint64_t max_image_bytes = 16 << 20;  ///< of a request
};

class Service {
 public:
  /// Binds, and answers 503 from then on. RuntimeFailure when the address cannot be had.
  explicit Service(const ServiceOptions& options);
  ~Service();

  std::string address() const { return http_.address(); }
  /// Serves until SIGTERM or SIGINT and the last request is answered, on the caller's thread, which becomes the
  /// engine's. False when requests had to be cut off. An exception means that the engine cannot go on.
  bool run(const ServedModel& model);

 private:
  enum class State { loading, ready, draining };
  struct Route;
  struct Classification;
  struct Caller {
    int key = -1;  ///< index; -1: none needed
    uint64_t owner = 0, salt = 0;
  };

  static const Route* find_route(const HttpRequest& request, bool& known_path);
  void handle(HttpRequest request, const std::shared_ptr<Reply>& reply);
  void route(HttpRequest& request, const std::shared_ptr<Reply>& reply);
  void add_cors(const HttpRequest& request, Reply& reply) const;
  Caller identify(const HttpRequest& request, bool open_to_all) const;
  void check_state(const Route& route) const;
  void check_model(const Route& route) const;
  void answer(const HttpRequest& request, const std::shared_ptr<Reply>& reply, HttpResponse response);
  /// Runs `work` on a worker; its response, or the error it throws, is the answer.
  void answer_later(HttpRequest request, const std::shared_ptr<Reply>& reply,
                    std::function<HttpResponse(const HttpRequest&)> work);

  // Routes. On the I/O thread.
  void preflight(HttpRequest&, const std::shared_ptr<Reply>&);
  void health(HttpRequest&, const std::shared_ptr<Reply>&);
  void page(HttpRequest&, const std::shared_ptr<Reply>&);
  void metrics_text(HttpRequest&, const std::shared_ptr<Reply>&);
  void version(HttpRequest&, const std::shared_ptr<Reply>&);
  void models(HttpRequest&, const std::shared_ptr<Reply>&);
  void props(HttpRequest&, const std::shared_ptr<Reply>&);
  void slots(HttpRequest&, const std::shared_ptr<Reply>&);
  void tokenizer_info(HttpRequest&, const std::shared_ptr<Reply>&);
  void tokenize(HttpRequest&, const std::shared_ptr<Reply>&);
  void detokenize(HttpRequest&, const std::shared_ptr<Reply>&);
  void completions(HttpRequest&, const std::shared_ptr<Reply>&);
  void chat_completions(HttpRequest&, const std::shared_ptr<Reply>&);
  void llama_completion(HttpRequest&, const std::shared_ptr<Reply>&);
  void classify(HttpRequest&, const std::shared_ptr<Reply>&);

  void complete(Dialect dialect, HttpRequest& request, const std::shared_ptr<Reply>& reply);
  void start_job(const std::shared_ptr<CompletionJob>& job, const std::shared_ptr<Reply>& reply);
  void deliver(std::vector<Event> events);
  void deliver_images(const ImageLoop::Jobs& jobs);
  void job_done(CompletionJob& job);
  nlohmann::json model_object() const;

  // Life.
  void on_signal(int signal);
  void on_tick();
  void finish_drain(bool clean);
  void become(State state);

  ServiceOptions options_;
  Metrics metrics_;
  ApiKeys keys_;
  uint64_t secret_ = 0;  ///< makes salts that clients cannot guess
  State state_ = State::loading;
  Clock::time_point drain_deadline_{};
  bool cut_off_ = false, cancelled_all_ = false;
  int64_t in_flight_ = 0;  ///< sequences or images
  std::set<std::shared_ptr<CompletionJob>> jobs_;
  ServedModel model_;
  int64_t created_ = 0;
  // run()'s own, null until the model is there; like all members touched by the I/O thread alone.
  EngineLoop* loop_ = nullptr;       ///< of models of text
  ImageLoop* image_loop_ = nullptr;  ///< of the others
  std::unique_ptr<JobContext> job_context_;
  std::unique_ptr<WorkerPool> workers_;
  HttpServer http_;  ///< last, so that it ends first
};

}  // namespace ballast::server
