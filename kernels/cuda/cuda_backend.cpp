#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <bit>
#include <thread>

namespace ballast {
namespace {

constexpr int kStages = 7;

}  // namespace

namespace cuda {

void* DeviceScratch::bytes(int64_t count, bool zeroed) {
  if (count > capacity_) {
    machine_.wait();  // for the kernels that use what is there
    machine_.release(data_);
    data_ = nullptr;
    capacity_ = 0;
    data_ = machine_.allocate(count);
    capacity_ = count;
    if (zeroed) machine_.clear(data_, count);
  }
  return data_;
}

Uploads::Uploads(Machine& machine) : machine_(machine) {
  for (size_t i = 0; i < kSlots; ++i) slots_.emplace_back(machine);
  next_ = slots_.begin();
}

bool Uploads::Slot::holds(const int32_t* host, int64_t count) const {
  return int64_t(there.size()) == count && std::equal(there.begin(), there.end(), host);
}

const int32_t* Uploads::on_device(const int32_t* host, int64_t count) {
  if (epoch_ != machine_.queue().epoch()) next_ = slots_.begin();
  epoch_ = machine_.queue().epoch();
  for (auto slot = slots_.begin(); slot != next_; ++slot)
    if (slot->holds(host, count)) return slot->device.of<int32_t>(count);
  if (next_ == slots_.end()) {
    machine_.queue().flush();
    next_ = slots_.begin();
  }
  // Room to grow: the pages of a sequence become more from step to step.
  auto* const target =
      next_->device.of<int32_t>(int64_t(std::bit_ceil(uint64_t(std::max<int64_t>(1024, count)))));
  if (!next_->holds(host, count)) {
    next_->there.assign(host, host + count);
    machine_.copy_ahead(target, host, 4 * count);
  }
  ++next_;
  epoch_ = machine_.queue().epoch();
  return target;
}

}  // namespace cuda

CudaBackend::CudaBackend(int threads, DType half, bool deterministic)
    : half_(half),
      deterministic_(deterministic),
      pool_(threads),
      input_(machine_),
      sums_(machine_),
      partials_(machine_),
      arrived_(machine_),
      decoded_(machine_),
      product_(machine_),
      parts_(machine_),
      from_host_(machine_),
      rounded_(machine_),
      uploads_(machine_) {
  for (int i = 0; i < kStages; ++i) stages_.emplace_back(machine_);
  machine_.queue().open(machine_.facts().graphs);
}

std::string CudaBackend::description() const {
  const cuda::MachineFacts& facts = machine_.facts();
  return str("cuda, ", facts.name, ", ", facts.memory_bytes >> 30, " GiB, ", name_of(half_), " tensor cores",
             deterministic_ ? ", the same bits in any batch" : "");
}

void* CudaBackend::allocate(int64_t bytes) {
  forget_input();
  CHECK(bytes >= 0);
  return machine_.allocate(std::max<int64_t>(bytes, 1));
}
void CudaBackend::release(void* pointer) noexcept {
  forget_input();
  machine_.release(pointer);
}
void CudaBackend::clear(void* pointer, int64_t bytes) {
  forget_input();
  machine_.clear(pointer, bytes);
}
void CudaBackend::copy_to_device(void* destination, const void* host, int64_t bytes) {
  forget_input();
  machine_.copy_in(destination, host, bytes);
}
void CudaBackend::copy_to_host(void* host, const void* source, int64_t bytes) {
  machine_.copy_out(host, source, bytes);
}
void CudaBackend::parallel_for(int64_t count, void (*body)(void*, int64_t, int64_t), void* state) {
  pool_.parallel(count, [&](int, int64_t begin, int64_t end) { body(state, begin, end); });
}

void CudaBackend::forget_input_under(const OutputView& y) {
  if (!prepared_.x || y.shape[0] == 0) return;
  const auto begin_of = [](const void* data) { return reinterpret_cast<uintptr_t>(data); };
  const auto end_of = [&](const void* data, int64_t rows, int64_t stride, int64_t columns) {
    return begin_of(data) + 4 * uintptr_t((rows - 1) * stride + columns);
  };
  const Prepared& x = prepared_;
  if (begin_of(y.data) < end_of(x.x, x.tokens, x.x_stride, x.in_features) &&
      begin_of(x.x) < end_of(y.data, y.shape[0], y.strides[0], y.shape[1]))
    forget_input();
}

const int32_t* CudaBackend::numbers(const TensorView& view) {
  if (view.device == Device::cuda) return view.as<int32_t>();
  return uploads_.on_device(view.as<int32_t>(), view.shape[0]);
}

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options) {
  if (options.activations == "int8")
    throw Error("--activations int8 is for --device cpu; cuda takes f32 or bf16");
  if (options.activations != "f32" && options.activations != "bf16")
    throw Error(
        str("--activations is \"", options.activations, "\", expected f32 or bf16 with --device cuda"));
  if (const std::string reason = cuda::why_unavailable(); !reason.empty())
    throw Error(str("--device cuda: ", reason, "; use --device cpu"));
  const int threads =
      options.threads > 0 ? options.threads : int(std::max(1u, std::thread::hardware_concurrency()));
  auto backend = std::make_unique<CudaBackend>(
      threads, options.activations == "bf16" ? DType::bf16 : DType::f16, options.deterministic);
  return backend;
}

}  // namespace ballast
