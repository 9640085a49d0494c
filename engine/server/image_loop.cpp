#include "engine/server/image_loop.h"

#include <spdlog/spdlog.h>

#include <algorithm>

namespace ballast::server {

void ImageLoop::submit(std::shared_ptr<ImageJob> job) {
  {
    const std::lock_guard lock(mutex_);
    waiting_.push_back(std::move(job));
  }
  wake_.notify_one();
}

void ImageLoop::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
}

ImageLoop::Status ImageLoop::status() const {
  const std::lock_guard lock(mutex_);
  Status status = status_;
  status.waiting = int64_t(waiting_.size());
  return status;
}

// Waits for images; none: it is time to end.
ImageLoop::Jobs ImageLoop::next() {
  std::unique_lock lock(mutex_);
  wake_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
  if (stopping_) return {};
  const auto end = waiting_.begin() + std::min<std::ptrdiff_t>(ImageClassifier::kBatch, std::ssize(waiting_));
  Jobs jobs(std::make_move_iterator(waiting_.begin()), std::make_move_iterator(end));
  waiting_.erase(waiting_.begin(), end);
  status_.running = int64_t(jobs.size());
  return jobs;
}

void ImageLoop::pass(const Jobs& jobs) {
  std::vector<const Image*> images;
  Jobs wanted;
  for (const auto& job : jobs) {
    job->started = Clock::now();
    if (job->cancelled) continue;
    images.push_back(&job->image);
    wanted.push_back(job);
  }
  std::vector<std::vector<float>> logits = classifier_.classify(images);
  for (size_t i = 0; i < wanted.size(); ++i) wanted[i]->logits = std::move(logits[i]);
  const std::lock_guard lock(mutex_);
  status_.classified += int64_t(wanted.size());
}

void ImageLoop::run() {
  bool failed = false;
  for (Jobs jobs; !(jobs = next()).empty();) {
    std::exception_ptr fatal;
    try {
      pass(jobs);
      failed = false;
    } catch (const std::exception& error) {
      spdlog::error("a pass failed: {}", error.what());
      if (std::exchange(failed, true)) fatal = std::current_exception();
    }
    {
      const std::lock_guard lock(mutex_);
      status_.running = 0;
      if (fatal) jobs.insert(jobs.end(), waiting_.begin(), waiting_.end()), waiting_.clear();
    }
    deliver_(std::move(jobs));
    if (fatal) std::rethrow_exception(fatal);
  }
}

}  // namespace ballast::server
