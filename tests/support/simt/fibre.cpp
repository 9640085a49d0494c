#include "tests/support/simt/fibre.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#define BALLAST_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define BALLAST_ASAN 1
#endif
#endif
#if defined(BALLAST_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace ballast::simt {
namespace {

constexpr size_t kStack = 256 << 10, kGuard = 4096;

}  // namespace

Fibre::Fibre() {
  void* memory =
      mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  stack_ = static_cast<char*>(memory);
  mprotect(stack_, kGuard, PROT_NONE);
}

Fibre::~Fibre() {
  munmap(stack_, kStack);
}

void Fibre::start(void (*entry)(void* argument), void* argument) {
  entry_ = entry;
  argument_ = argument;
  fresh_ = true;
#if defined(BALLAST_ASAN)
  ASAN_UNPOISON_MEMORY_REGION(stack_ + kGuard, kStack - kGuard);
  own_fake_stack_ = nullptr;
#endif
}

void Fibre::trampoline(unsigned high, unsigned low) {
  reinterpret_cast<Fibre*>(uintptr_t(high) << 32 | low)->enter();
}

#if defined(BALLAST_ASAN)

void Fibre::enter() {
  __sanitizer_finish_switch_fiber(nullptr, &host_stack_, &host_stack_size_);
  entry_(argument_);
}

void Fibre::resume() {
  __sanitizer_start_switch_fiber(&host_fake_stack_, stack_ + kGuard, kStack - kGuard);
  if (fresh_) {
    fresh_ = false;
    getcontext(&first_);
    first_.uc_stack = {.ss_sp = stack_ + kGuard, .ss_flags = 0, .ss_size = kStack - kGuard};
    first_.uc_link = nullptr;
    const auto self = reinterpret_cast<uintptr_t>(this);
    makecontext(&first_, reinterpret_cast<void (*)()>(trampoline), 2, unsigned(self >> 32), unsigned(self));
    swapcontext(&host_context_, &first_);
  } else {
    swapcontext(&host_context_, &own_context_);
  }
  __sanitizer_finish_switch_fiber(host_fake_stack_, nullptr, nullptr);
}

void Fibre::suspend() {
  __sanitizer_start_switch_fiber(&own_fake_stack_, host_stack_, host_stack_size_);
  swapcontext(&own_context_, &host_context_);
  __sanitizer_finish_switch_fiber(own_fake_stack_, &host_stack_, &host_stack_size_);
}

#else

// ucontext only makes the stack: its switches save the signal mask, a system call each; a jump costs a few nanoseconds.
void Fibre::enter() {
  entry_(argument_);
}

void Fibre::resume() {
  if (_setjmp(host_) != 0) return;
  if (!fresh_) _longjmp(own_, 1);
  fresh_ = false;
  getcontext(&first_);
  first_.uc_stack = {.ss_sp = stack_ + kGuard, .ss_flags = 0, .ss_size = kStack - kGuard};
  first_.uc_link = nullptr;
  const auto self = reinterpret_cast<uintptr_t>(this);
  makecontext(&first_, reinterpret_cast<void (*)()>(trampoline), 2, unsigned(self >> 32), unsigned(self));
  setcontext(&first_);
}

void Fibre::suspend() {
  if (_setjmp(own_) == 0) _longjmp(host_, 1);
}

#endif

}  // namespace ballast::simt
