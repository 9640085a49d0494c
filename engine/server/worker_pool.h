// Threads for work that would hold up the I/O thread: parsing, tokenizing, writing large answers.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace ballast::server {

class WorkerPool {
 public:
  explicit WorkerPool(int threads);
  /// Waits for the tasks that have begun; the others are dropped.
  ~WorkerPool();

  /// Tasks must not throw.
  void run(std::function<void()> task);

 private:
  void work();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> tasks_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace ballast::server
