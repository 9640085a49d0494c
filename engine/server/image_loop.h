// The thread that owns an image classifier. Prepared images come in through a queue and go through the model as many
// together as wait, up to a pass's worth.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "engine/evaluation/classification.h"
#include "engine/server/http_message.h"

namespace ballast::server {

/// One image on its way. Whoever submits it keeps what else belongs to the request in a derived class.
struct ImageJob {
  virtual ~ImageJob() = default;

  Image image;                         ///< prepared by the classifier's reader
  std::atomic<bool> cancelled{false};  ///< nobody waits for it any more; from any thread
  // Set when it is delivered.
  std::vector<float> logits;    ///< [classes]; empty when the pass failed or it was cancelled
  Clock::time_point started{};  ///< when its pass began
};

class ImageLoop {
 public:
  using Jobs = std::vector<std::shared_ptr<ImageJob>>;
  /// Called on the classifier's thread with the jobs of a pass, each once.
  using Deliver = std::function<void(Jobs)>;
  /// Borrows the classifier. Nothing is called before run().
  ImageLoop(ImageClassifier& classifier, Deliver deliver)
      : classifier_(classifier), deliver_(std::move(deliver)) {}

  /// Takes passes until stop(), on the caller's thread. A pass that throws fails its images; when the next one throws
  /// too, so do all that wait, and the exception goes on to the caller.
  void run();
  void stop();

  // From any thread.
  void submit(std::shared_ptr<ImageJob> job);
  struct Status {
    int64_t running = 0, waiting = 0, classified = 0;  ///< images
  };
  Status status() const;

 private:
  Jobs next();
  void pass(const Jobs& jobs);

  ImageClassifier& classifier_;
  Deliver deliver_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  Jobs waiting_;
  Status status_;
  bool stopping_ = false;
};

}  // namespace ballast::server
