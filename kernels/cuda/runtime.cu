#include "kernels/cuda/runtime.h"

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <tuple>

#include "kernels/check.h"

namespace ballast::cuda {
namespace {

// cuBLASLt may use so much beside the operands.
constexpr size_t kProductWorkspace = size_t(32) << 20;
// Copies from the host up to this size pass through pinned memory, so that nobody waits for them.
constexpr int64_t kStagedBytes = int64_t(64) << 10, kStagingBytes = int64_t(1) << 20;
// The smallest device that all kernels were made for has 163 KB of shared memory a block (sm_80).
constexpr int kLeastMajor = 8;
constexpr int64_t kLeastShared = int64_t(160) << 10;

void check_product(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw RuntimeFailure(str(call, " failed: cuBLASLt status ", int(status)));
}

std::string megabytes(size_t bytes) {
  return str(bytes >> 20, " MiB");
}

}  // namespace

void check_call(int error, const char* call) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // what is said here is not said again of the next launch
  throw RuntimeFailure(str(call, " failed: ", cudaGetErrorString(cudaError_t(error))));
}

std::string why_unavailable() {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    cudaGetLastError();  // leaves nothing behind for the next check
    if (error == cudaErrorInsufficientDriver) return "no NVIDIA driver, or one too old for this build";
    if (error == cudaErrorNoDevice) return "no NVIDIA GPU was found";
    return str("the CUDA driver says \"", cudaGetErrorString(error), "\"");
  }
  if (count == 0) return "no NVIDIA GPU was found";
  cudaDeviceProp facts{};
  if (const cudaError_t error = cudaGetDeviceProperties(&facts, 0); error != cudaSuccess)
    return str("the GPU cannot be asked for its properties: ", cudaGetErrorString(error));
  if (facts.major < kLeastMajor || int64_t(facts.sharedMemPerBlockOptin) < kLeastShared)
    return str(facts.name, " has compute capability ", facts.major, ".", facts.minor, " and ",
               facts.sharedMemPerBlockOptin >> 10,
               " KB of shared memory for a block; 8.0 and 160 KB are needed");
  return "";
}

struct Machine::State {
  cudaStream_t stream = nullptr;
  cublasLtHandle_t product = nullptr;
  void* workspace = nullptr;
  char* staging = nullptr;   ///< pinned
  int64_t staging_used = 0;  ///< bytes that copies may still be reading

  // What cuBLASLt's heuristic chose for a shape, kept so that a shape is always multiplied by the same algorithm.
  using ShapeKey = std::tuple<int, int64_t, int64_t, int64_t>;
  std::map<ShapeKey, cublasLtMatmulAlgo_t> algorithms;

  State() = default;
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() {
    if (staging) cudaFreeHost(staging);
    if (workspace) cudaFree(workspace);
    if (product) cublasLtDestroy(product);
    if (stream) cudaStreamDestroy(stream);
  }
};

Machine::Machine() : state_(std::make_unique<State>()) {
  check_call(cudaSetDevice(0), "cudaSetDevice");
  cudaDeviceProp facts{};
  check_call(cudaGetDeviceProperties(&facts, 0), "cudaGetDeviceProperties");
  facts_ = {.name = facts.name,
            .major = facts.major,
            .minor = facts.minor,
            .multiprocessors = facts.multiProcessorCount,
            .memory_bytes = int64_t(facts.totalGlobalMem),
            .cache_bytes = int64_t(facts.l2CacheSize),
            .shared_bytes = int64_t(facts.sharedMemPerBlockOptin),
            .graphs = true};
  check_call(cudaStreamCreateWithFlags(&state_->stream, cudaStreamNonBlocking), "cudaStreamCreate");
  check_call(cudaMallocHost(&state_->staging, size_t(kStagingBytes)), "cudaMallocHost");
  check_product(cublasLtCreate(&state_->product), "cublasLtCreate");
}

Machine::~Machine() {
  queue_.flush_quietly();
  cudaStreamSynchronize(state_->stream);
}

void* Machine::allocate(int64_t bytes) {
  void* pointer = nullptr;
  const cudaError_t error = cudaMalloc(&pointer, size_t(bytes));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    throw RuntimeFailure(str("out of device memory: ", bytes, " bytes (", megabytes(size_t(bytes)),
                             ") were asked for, ", megabytes(free), " of ", megabytes(total), " are free on ",
                             facts_.name));
  }
  check_call(error, "cudaMalloc");
  return pointer;
}

void Machine::release(void* pointer) noexcept {
  queue_.flush_quietly();
  cudaFree(pointer);
}

void Machine::copy_in(void* to, const void* from, int64_t bytes) {
  queue_.flush();
  copy_ahead(to, from, bytes);
}

void Machine::copy_ahead(void* to, const void* from, int64_t bytes) {
  if (bytes == 0) return;
  const auto copy = [&](const void* source) {
    check_call(cudaMemcpyAsync(to, source, size_t(bytes), cudaMemcpyDefault, state_->stream),
               "a copy to the device");
  };
  cudaPointerAttributes kind{};
  check_call(cudaPointerGetAttributes(&kind, from), "cudaPointerGetAttributes");
  if (kind.type == cudaMemoryTypeDevice) return copy(from);
  if (bytes > kStagedBytes) {
    copy(from);
    return wait();  // `from` may change from here on
  }
  if (state_->staging_used + bytes > kStagingBytes) {
    wait();
    state_->staging_used = 0;
  }
  char* const staged = state_->staging + state_->staging_used;
  state_->staging_used += (bytes + 63) / 64 * 64;
  std::memcpy(staged, from, size_t(bytes));
  copy(staged);
}

void Machine::copy_out(void* to, const void* from, int64_t bytes) {
  queue_.flush();
  check_call(cudaMemcpyAsync(to, from, size_t(bytes), cudaMemcpyDefault, state_->stream),
             "a copy from the device");
  wait();
}

void Machine::clear(void* to, int64_t bytes) {
  queue_.flush();
  check_call(cudaMemsetAsync(to, 0, size_t(bytes), state_->stream), "cudaMemset");
}

void Machine::wait() {
  queue_.flush();
  check_call(cudaStreamSynchronize(state_->stream), "work on the device");
}

void* Machine::stream() const {
  return state_->stream;
}

struct Recording::State {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t runnable = nullptr;

  State() = default;
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() {
    if (runnable) cudaGraphExecDestroy(runnable);
    if (graph) cudaGraphDestroy(graph);
  }
};
Recording::Recording(std::unique_ptr<State> state) : state_(std::move(state)) {}
Recording::Recording(Recording&&) noexcept = default;
Recording& Recording::operator=(Recording&&) noexcept = default;
Recording::~Recording() = default;

Recording Machine::record(const std::function<void()>& body) {
  const QueueShut shut(queue_);
  auto made = std::make_unique<Recording::State>();
  check_call(cudaStreamBeginCapture(state_->stream, cudaStreamCaptureModeThreadLocal),
             "cudaStreamBeginCapture");
  try {
    body();
  } catch (...) {
    cudaStreamEndCapture(state_->stream, &made->graph);
    cudaGetLastError();
    throw;
  }
  check_call(cudaStreamEndCapture(state_->stream, &made->graph), "cudaStreamEndCapture");
  check_call(cudaGraphInstantiate(&made->runnable, made->graph, 0), "cudaGraphInstantiate");
  return Recording(std::move(made));
}

void Machine::replay(const Recording& recording) {
  queue_.flush();
  check_call(cudaGraphLaunch(recording.state_->runnable, state_->stream), "cudaGraphLaunch");
}

double Machine::seconds(const std::function<void()>& body) {
  struct Event {
    cudaEvent_t event = nullptr;
    Event() { check_call(cudaEventCreate(&event), "cudaEventCreate"); }
    ~Event() { cudaEventDestroy(event); }
  } begin, end;
  queue_.flush();
  check_call(cudaEventRecord(begin.event, state_->stream), "cudaEventRecord");
  body();
  queue_.flush();
  check_call(cudaEventRecord(end.event, state_->stream), "cudaEventRecord");
  wait();
  float milliseconds = 0;
  check_call(cudaEventElapsedTime(&milliseconds, begin.event, end.event), "cudaEventElapsedTime");
  return 1e-3 * milliseconds;
}

namespace {

// cuBLASLt thinks in columns: our row-major matrices are its transposed ones.
struct Descriptors {
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, out = nullptr;
  cublasLtMatmulPreference_t preference = nullptr;

  explicit Descriptors(const HalfProduct& p) {
    const cudaDataType_t type = p.type == DType::f16 ? CUDA_R_16F : CUDA_R_16BF;
    check_product(cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                  "cublasLtMatmulDescCreate");
    const cublasOperation_t transposed = CUBLAS_OP_T;
    check_product(
        cublasLtMatmulDescSetAttribute(product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed),
        "cublasLtMatmulDescSetAttribute");
    const auto layout = [&](cublasLtMatrixLayout_t& made, cudaDataType_t of, int64_t rows, int64_t columns) {
      check_product(cublasLtMatrixLayoutCreate(&made, of, uint64_t(rows), uint64_t(columns), rows),
                    "cublasLtMatrixLayoutCreate");
    };
    layout(a, type, p.inner, p.columns);
    layout(b, type, p.inner, p.rows);
    layout(out, CUDA_R_32F, p.columns, p.rows);
    check_product(cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
    check_product(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                       &kProductWorkspace, sizeof kProductWorkspace),
                  "cublasLtMatmulPreferenceSetAttribute");
  }
  Descriptors(const Descriptors&) = delete;
  Descriptors& operator=(const Descriptors&) = delete;
  ~Descriptors() {
    if (preference) cublasLtMatmulPreferenceDestroy(preference);
    for (cublasLtMatrixLayout_t made : {a, b, out})
      if (made) cublasLtMatrixLayoutDestroy(made);
    if (product) cublasLtMatmulDescDestroy(product);
  }
};

}  // namespace

void Machine::multiply(const HalfProduct& p) {
  queue_.flush();
  CHECK(p.inner % 8 == 0 && p.rows > 0 && p.columns > 0);
  if (!state_->workspace) state_->workspace = allocate(int64_t(kProductWorkspace));
  const Descriptors of(p);
  const State::ShapeKey key{int(p.type), p.rows, p.columns, p.inner};
  auto known = state_->algorithms.find(key);
  if (known == state_->algorithms.end()) {
    cublasLtMatmulHeuristicResult_t result{};
    int found = 0;
    check_product(cublasLtMatmulAlgoGetHeuristic(state_->product, of.product, of.a, of.b, of.out, of.out,
                                                 of.preference, 1, &result, &found),
                  "cublasLtMatmulAlgoGetHeuristic");
    if (found == 0)
      throw RuntimeFailure(
          str("cuBLASLt knows no way to multiply ", p.rows, " x ", p.inner, " x ", p.columns));
    known = state_->algorithms.emplace(key, result.algo).first;
  }
  const float one = 1, zero = 0;
  check_product(
      cublasLtMatmul(state_->product, of.product, &one, p.b, of.a, p.a, of.b, &zero, p.out, of.out, p.out,
                     of.out, &known->second, state_->workspace, kProductWorkspace, state_->stream),
      "cublasLtMatmul");
}

}  // namespace ballast::cuda
