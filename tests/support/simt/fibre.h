// A stack of its own that can be left and entered again.
#pragma once

#include <ucontext.h>
#include <csetjmp>
#include <cstddef>

namespace ballast::simt {

class Fibre {
 public:
  Fibre();
  ~Fibre();
  Fibre(const Fibre&) = delete;
  Fibre& operator=(const Fibre&) = delete;

  /// The next resume() begins entry(argument) on an empty stack; whatever the fibre was doing is forgotten. `entry` must
  /// not return: it suspends for ever.
  void start(void (*entry)(void* argument), void* argument);
  /// From the host: runs the fibre until it suspends.
  void resume();
  /// From the fibre: back to where resume() was called.
  void suspend();

 private:
  static void trampoline(unsigned high, unsigned low);
  void enter();

  char* stack_ = nullptr;
  ucontext_t first_{}, host_context_{}, own_context_{};
  jmp_buf own_{}, host_{};
  bool fresh_ = true;
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  void* host_fake_stack_ = nullptr;
  void* own_fake_stack_ = nullptr;
  const void* host_stack_ = nullptr;
  size_t host_stack_size_ = 0;
};

}  // namespace ballast::simt
