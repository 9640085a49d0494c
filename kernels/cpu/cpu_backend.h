// The CPU backend: one thread pool, kernels for the best instruction set this machine has.
#pragma once

#include <type_traits>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/thread_pool.h"

namespace ballast {

/// Grows and never shrinks; 64-byte aligned.
class ScratchBuffer {
 public:
  ScratchBuffer() = default;
  ScratchBuffer(const ScratchBuffer&) = delete;
  ScratchBuffer& operator=(const ScratchBuffer&) = delete;
  ~ScratchBuffer();
  float* floats(int64_t count);

 private:
  float* data_ = nullptr;
  int64_t capacity_ = 0;
};

/// BackendOptions::activations.
enum class ActivationMode : uint8_t { exact, int8 };

class CpuBackend final : public Backend {
 public:
  CpuBackend(const KernelTable& kernels, int threads, ActivationMode activations, bool pinned = false);

  Device device() const override { return Device::cpu; }
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
  void run(const RoundActivations& op) override;
  void run(const Attention& op) override;
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

  std::vector<std::unique_ptr<Backend>> lanes() const override;
  using Backend::parallel_for;
  void parallel_for(int64_t count, void (*body)(void*, int64_t, int64_t), void* state) override;

 private:
  template <class Encoding>
  void run_linear(const Linear<Encoding>& op);
  template <class Encoding>
  void run_planes(const Linear<Encoding>& op);
  /// Integer products of weight codes and codes of the input.
  void run_fixed(const Linear<AffineView>& op, const IntegerCodes& codes);
  /// The same op on an input rounded beforehand.
  template <class Encoding>
  void run_rounded(Linear<Encoding> op);
  /// The same of codes beside int8 activations.
  void run_binary(const Linear<ResidualBinaryView>& op);
  /// How this backend packed a weight.
  template <class View>
  TiledWeight tiles_of(const View& weight) const {
    if constexpr (std::is_same_v<View, ResidualBinaryView>) {
      return tiled(weight, has_ordered_codes(weight));
    } else {
      return tiled(weight);
    }
  }
  /// True where residual binary codes are packed for integer kernels.
  bool has_ordered_codes(const ResidualBinaryView& weight) const;
  template <class Encoding>
  LinearTask linear_task(const Linear<Encoding>& op);
  /// All tiles, or units of columns, of the task by one entry of the kernel table.
  void run_parts(const LinearTask& task, int64_t parts, void (*kernel)(const LinearTask&, int64_t, int64_t));
  /// The tokens of a task with planes whose x is not finite: they have no integers and take the float kernel alone, so that
  /// their results too are the same in any company.
  void run_special(const LinearTask& task);
  /// x in integers for a weight of `bits` in groups; valid until the next call.
  PlaneBlocks split(const TensorView& x, int bits, int64_t group_size);
  PlaneBlocks split_binary(const TensorView& x, const TiledWeight& weight);
  /// Blocks of tokens by one entry of the kernel table.
  void run_split(const SplitTask& task, void (*kernel)(const SplitTask&, int64_t, int64_t));
  template <class Encoding>
  void run_embedding(const Embedding<Encoding>& op);
  /// fill_blocks (see tiles.h) on all threads.
  void pack_blocks(const float* x, int64_t tokens, int64_t features, int64_t token_stride, int64_t k_stride,
                   float sign, float* x_blocks);
  void attend_whole(const Attention& op);
  /// Attention of single rows, each row's blocks of positions shared by the threads.
  void attend_in_parts(const Attention& op);
  void mirror_lower(double* out, int64_t size);
  float* thread_scratch(int thread, int64_t floats) { return scratch_[size_t(thread)].floats(floats); }

  const KernelTable& kernels_;
  ActivationMode activations_;
  int64_t prefetch_bytes_;  ///< of LinearTask
  ThreadPool pool_;
  ScratchBuffer blocks_;
  ScratchBuffer planes_;
  ScratchBuffer rounded_;
  ScratchBuffer tiles_;
  std::vector<ScratchBuffer> scratch_;  ///< one per thread
};

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options);

}  // namespace ballast
