// The CUDA backend: one GPU, everything in the order of one stream.
//
// Activations and caches are f32, as ops say. Linear layers with quantized weights round their input to 16 bits for the tensor
// cores (f16, or bf16 with --activations bf16) and sum in f32; everything else computes in f32.
//
// Where that is asked for (--deterministic), kernels are chosen by a layer's shape alone: no products of cuBLASLt, whose
// algorithm depends on the number of tokens, and single rows in causal attention, whatever the length of a span.
#pragma once

#include <deque>
#include <list>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cuda/linear_args.h"
#include "kernels/cuda/runtime.h"

namespace ballast {

namespace cuda {

/// Device memory that grows and never shrinks; what was in it is lost when it grows.
class DeviceScratch {
 public:
  explicit DeviceScratch(Machine& machine) : machine_(machine) {}
  DeviceScratch(const DeviceScratch&) = delete;
  DeviceScratch& operator=(const DeviceScratch&) = delete;
  ~DeviceScratch() { machine_.release(data_); }
  /// 256-byte aligned. `zeroed`: new memory is all zeros.
  void* bytes(int64_t count, bool zeroed = false);
  template <class T>
  T* of(int64_t count, bool zeroed = false) {
    return static_cast<T*>(bytes(count * int64_t(sizeof(T)), zeroed));
  }

 private:
  Machine& machine_;
  void* data_ = nullptr;
  int64_t capacity_ = 0;
};

/// Numbers that an op gets in host memory, on the device; copied only when they are not there already, as they are in all
/// layers of a model but the first. What waits in the queue of launches keeps its numbers; and the numbers of a step lie where
/// those of the step before lay, when it asked for as many, so that its launches are the same.
class Uploads {
 public:
  explicit Uploads(Machine& machine);
  const int32_t* on_device(const int32_t* host, int64_t count);

 private:
  struct Slot {
    explicit Slot(Machine& machine) : device(machine) {}
    DeviceScratch device;
    std::vector<int32_t> there;
    bool holds(const int32_t* host, int64_t count) const;
  };
  static constexpr size_t kSlots = 8;

  Machine& machine_;
  std::list<Slot> slots_;
  std::list<Slot>::iterator next_;  ///< those before it were asked for in this epoch of the queue
  int64_t epoch_ = -1;
};

}  // namespace cuda

class CudaBackend final : public Backend {
 public:
  CudaBackend(int threads, DType half, bool deterministic = false);

  Device device() const override { return Device::cuda; }
  std::string description() const override;

  void* allocate(int64_t bytes) override;
  void release(void* pointer) noexcept override;
  void clear(void* pointer, int64_t bytes) override;
  void copy_to_device(void* destination, const void* host, int64_t bytes) override;
  void copy_to_host(void* host, const void* source, int64_t bytes) override;

  int64_t packed_bytes(const DenseView& weight) const override;
  int64_t packed_bytes(const AffineView& weight) const override;
  int64_t packed_bytes(const SparseOutlierView& weight) const override;
  int64_t packed_bytes(const ResidualBinaryView& weight) const override;
  void pack(const TensorView& source, const DenseView& weight, void* blob) override;
  void pack(const AffineMatrix& source, const AffineView& weight, void* blob) override;
  void pack(const SparseOutlierMatrix& source, const SparseOutlierView& weight, void* blob) override;
  void pack(const ResidualBinaryMatrix& source, const ResidualBinaryView& weight, void* blob) override;

  void run(const Linear<DenseView>& op) override;
  void run(const Linear<AffineView>& op) override;
  void run(const Linear<SparseOutlierView>& op) override;
  void run(const Linear<ResidualBinaryView>& op) override;
  void run(const Embedding<DenseView>& op) override;
  void run(const Embedding<AffineView>& op) override;
  void run(const Embedding<SparseOutlierView>& op) override;
  void run(const Embedding<ResidualBinaryView>& op) override;
  void run(const GatherRows& op) override;
  void run(const LayerNorm& op) override;
  void run(const Attention& op) override;
  void run(const RoundActivations& op) override;
  void run(const Subtract& op) override;
  void run(const ChooseTokens& op) override;
  void run(const StoreHalfRows& op) override;
  void run(const LoadHalfRows& op) override;
  void run(const SecondMoment& op) override;
  void run(const ColumnSums& op) override;
  bool run(const FactorizeInverse& op) override;
  void run(const RankUpdate& op) override;
  void run(const RoundColumns& op) override;
  void run(const ActivationBackward& op) override;
  void run(const LayerNormBackward& op) override;
  void run(const AttentionBackward& op) override;
  void run(const CrossEntropyBackward& op) override;

  using Backend::parallel_for;
  void parallel_for(int64_t count, void (*body)(void*, int64_t, int64_t), void* state) override;

  /// For timing.
  cuda::Machine& machine() { return machine_; }
  /// Blocks that linear kernels are cut into, whatever the number of tokens.
  int64_t linear_blocks() const { return 2 * int64_t(machine_.facts().multiprocessors); }
  /// From this many tokens on, affine weights are decoded to 16 bits and multiplied by cuBLASLt: some four more bytes of
  /// traffic a weight, 1 ps on an H200, for products about twice as fast, which is 2 to 4 fs a weight and token. Estimated;
  /// `tests/device.sh` measures both ways from 64 to 1024 tokens and says where they cross.
  static constexpr int64_t kDecodeTokens = 512;
  /// Another number of tokens in its place, for measuring.
  void decode_from(int64_t tokens) { decode_tokens_ = tokens; }

 private:
  template <class Encoding>
  cuda::Epilogue epilogue(const Linear<Encoding>& op);
  /// The op on tokens [first, first + count).
  template <class Encoding>
  static Linear<Encoding> part_of(const Linear<Encoding>& op, int64_t first, int64_t count);

  // embedding.cu
  template <class Encoding, class Table>
  void look_up(const Embedding<Encoding>& op, Table (*packed)(const Encoding& weight));

  // second_moment.cu
  template <class Out>
  void add_moment(const SecondMoment& op, Out* out);

  // linear_tokens.h
  template <int Bits, class Meta, class Half, int TokenTiles, class View>
  bool run_tokens(const Linear<View>& op);

  // linear_affine.h
  template <int Bits>
  void run_fragments(const Linear<AffineView>& op);
  template <int Bits, class Half>
  void run_halves(const Linear<AffineView>& op);
  template <int Bits, class Half>
  void run_decoded(const Linear<AffineView>& op);

  // linear_others.cu
  template <int Bits, class Meta, class Half, class View>
  void run_small(const Linear<View>& op);
  void run_outliers(const Linear<SparseOutlierView>& op);
  void run_tables(const Linear<ResidualBinaryView>& op);

  // linear.cu
  template <class Encoding>
  void run_rows(DType type, const Linear<Encoding>& op);
  /// The same through cuBLASLt, 16-bit weights only; x is rounded to their type.
  void multiply_halves(DType type, const void* weights, const TensorView& x, const cuda::Epilogue& behind);

  /// Numbers on the device, wherever the view has them.
  const int32_t* numbers(const TensorView& view);
  /// What prepared_ stands for is about to change.
  void forget_input() { prepared_ = {}; }
  /// The same where the output lies over that input.
  void forget_input_under(const OutputView& y);
  /// The op with its input on the device, wherever it was: images come from the host.
  template <class Encoding>
  Linear<Encoding> with_input(const Linear<Encoding>& op);
  /// body(op) with all operands there; then y goes where it was.
  template <class Encoding, class Body>
  void on_device(const Linear<Encoding>& any_op, Body&& body);

  /// The input that was rounded last: layers that share one, as q, k and v do, round it once. Every op that writes something
  /// else than the output of a linear layer forgets it.
  struct Prepared {
    const void* x = nullptr;
    int64_t x_stride = 0, tokens = 0, in_features = 0;
    int bits = 0, chunk = 0;
    cuda::PreparedInput to{};
    bool holds(const Prepared& wanted) const {
      return x && x == wanted.x && x_stride == wanted.x_stride && tokens == wanted.tokens &&
             in_features == wanted.in_features && bits == wanted.bits && chunk == wanted.chunk &&
             to.tokens == wanted.to.tokens;
    }
  };

  DType half_;
  bool deterministic_;
  int64_t decode_tokens_ = kDecodeTokens;
  Prepared prepared_;
  ThreadPool pool_;
  cuda::Machine machine_;
  cuda::DeviceScratch input_, sums_, partials_, arrived_, decoded_, product_, parts_, from_host_, rounded_;
  cuda::Uploads uploads_;
  std::deque<cuda::DeviceScratch> stages_;  ///< operands in host memory, see staged.h
};

/// Error when there is no device that can be used, with the reason.
std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options);

}  // namespace ballast
