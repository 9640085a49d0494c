#include "kernels/cpu/cpu_backend.h"

#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace ballast {
namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kHugePage = int64_t(2) << 20;

int64_t rounded(int64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

bool runs_avx2() {
#if defined(__x86_64__)
  // Clang's __builtin_cpu_supports does not know f16c.
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
  return f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi2");
#else
  return false;
#endif
}

bool runs_avx512() {
#if defined(__x86_64__)
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

const KernelTable& choose_kernels(const std::string& isa) {
  if (isa == "scalar") return scalar_kernels();
#if defined(__x86_64__)
  if (isa == "avx512" || (isa == "auto" && runs_avx512())) {
    if (!runs_avx512()) throw Error("instruction set avx512 is not supported by this processor");
    return avx512_kernels();
  }
  if (isa == "avx2" || (isa == "auto" && runs_avx2())) {
    if (!runs_avx2()) throw Error("instruction set avx2 is not supported by this processor");
    return avx2_kernels();
  }
#endif
  if (isa != "auto")
    throw Error(str("instruction set is \"", isa, "\", expected auto, scalar, avx2 or avx512"));
  return scalar_kernels();
}

// With 512-bit loads of 4-bit codes Zen 4 follows the stream by itself, and hints only take places in its queue of misses:
// without them OPT-1.3B's shape decodes 1.03 times as fast where memory is the limit (30 to 37 GB/s) and 1.1 to 1.2 times
// at 50 to 60 GB/s. With fewer bits, more tokens or 256-bit loads hints help there too, up to 1.4 times.
int64_t prefetch_bytes_for(const KernelTable& kernels) {
#if defined(__x86_64__)
  if (&kernels == &avx512_kernels() && __builtin_cpu_is("amd")) return 0;
#endif
  return kPrefetchBytes;
}

int usable_processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, int(std::thread::hardware_concurrency()));
}

}  // namespace

ScratchBuffer::~ScratchBuffer() {
  std::free(data_);
}

float* ScratchBuffer::floats(int64_t count) {
  if (count <= capacity_) return data_;
  std::free(data_);
  capacity_ = 0;
  const int64_t bytes = rounded(count * int64_t(sizeof(float)));
  data_ = static_cast<float*>(std::aligned_alloc(kAlignment, size_t(bytes)));
  if (!data_) throw RuntimeFailure(str("out of memory: ", bytes, " bytes of scratch space"));
  capacity_ = bytes / int64_t(sizeof(float));
  return data_;
}

CpuBackend::CpuBackend(const KernelTable& kernels, int threads, ActivationMode activations, bool pinned)
    : kernels_(kernels),
      activations_(activations),
      prefetch_bytes_(prefetch_bytes_for(kernels)),
      pool_(threads, pinned),
      scratch_(size_t(threads)) {}

std::string CpuBackend::description() const {
  return str("cpu, ", kernels_.name, ", ", pool_.threads(), pool_.threads() == 1 ? " thread" : " threads",
             activations_ == ActivationMode::int8 ? ", int8 activations" : "");
}

std::vector<std::unique_ptr<Backend>> CpuBackend::lanes() const {
  std::vector<std::unique_ptr<Backend>> lanes;
  for (int lane = 0; pool_.threads() > 1 && lane < pool_.threads(); ++lane)
    lanes.push_back(std::make_unique<CpuBackend>(kernels_, 1, activations_));
  return lanes;
}

void* CpuBackend::allocate(int64_t bytes) {
  CHECK(bytes >= 0);
  // Weights are read end to end for every token: in huge pages, where the system grants them, hardly an address
  // misses the translation buffer, and loading takes a five-hundredth of the page faults.
  const bool large = bytes >= 2 * kHugePage;
  const auto size = size_t(rounded(std::max<int64_t>(bytes, 1)));
  void* pointer = std::aligned_alloc(size_t(large ? kHugePage : kAlignment), size);
  if (!pointer) throw RuntimeFailure(str("out of memory: ", bytes, " bytes were asked for"));
  if (large) madvise(pointer, size, MADV_HUGEPAGE);  // refused, it is an ordinary allocation
  return pointer;
}

void CpuBackend::release(void* pointer) noexcept {
  std::free(pointer);
}

void CpuBackend::clear(void* pointer, int64_t bytes) {
  std::memset(pointer, 0, size_t(bytes));
}
void CpuBackend::copy_to_device(void* destination, const void* host, int64_t bytes) {
  std::memcpy(destination, host, size_t(bytes));
}

void CpuBackend::copy_to_host(void* host, const void* source, int64_t bytes) {
  std::memcpy(host, source, size_t(bytes));
}

void CpuBackend::parallel_for(int64_t count, void (*body)(void*, int64_t, int64_t), void* state) {
  pool_.parallel(count, [&](int, int64_t begin, int64_t end) { body(state, begin, end); });
}

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options) {
  if (options.threads < 0 || options.threads > 1024)
    throw Error(str("--threads is ", options.threads, ", expected 1 to 1024, or 0 for all processors"));
  if (options.activations != "f32" && options.activations != "int8")
    throw Error(str("--activations is \"", options.activations, "\", expected f32 or int8"));
  const int threads = options.threads > 0 ? options.threads : usable_processors();
  return std::make_unique<CpuBackend>(
      choose_kernels(options.isa), threads,
      options.activations == "int8" ? ActivationMode::int8 : ActivationMode::exact, options.pin);
}

std::string unsupported_isas() {
  std::string names;
#if defined(__x86_64__)
  if (!runs_avx2()) names += "avx2 ";
  if (!runs_avx512()) names += "avx512 ";
#endif
  if (!names.empty()) names.pop_back();
  return names;
}

}  // namespace ballast
