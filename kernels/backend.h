// A backend owns a device: its memory, its threads or streams, its choice of kernels. It knows ops, no model.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/encodings/quantized_matrix.h"
#include "kernels/ops/attention.h"
#include "kernels/ops/choose_tokens.h"
#include "kernels/ops/column_sums.h"
#include "kernels/ops/cross_entropy.h"
#include "kernels/ops/embedding.h"
#include "kernels/ops/factorize.h"
#include "kernels/ops/gather.h"
#include "kernels/ops/half_rows.h"
#include "kernels/ops/layernorm.h"
#include "kernels/ops/linear.h"
#include "kernels/ops/rank_update.h"
#include "kernels/ops/round_activations.h"
#include "kernels/ops/round_columns.h"
#include "kernels/ops/second_moment.h"
#include "kernels/ops/subtract.h"

namespace ballast {

class Backend {
 public:
  Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;
  virtual ~Backend() = default;

  virtual Device device() const = 0;
  /// One line for people: "cpu, avx2, 2 threads".
  virtual std::string description() const = 0;

  /// Device memory, 64-byte aligned, uninitialized. Throws RuntimeFailure saying how much was asked for. Unless device() is
  /// the CPU, the host must not follow a pointer there. Views say on which side they are; operands of ops may be on either,
  /// and those in host memory are copied for the time of the op.
  virtual void* allocate(int64_t bytes) = 0;
  virtual void release(void* pointer) noexcept = 0;
  virtual void clear(void* pointer, int64_t bytes) = 0;  ///< zeros in device memory
  virtual void copy_to_device(void* destination, const void* source, int64_t bytes) = 0;  ///< from either side
  virtual void copy_to_host(void* host, const void* source, int64_t bytes) = 0;           ///< from either side

  /// Size of the packed blob of a weight; the view's `data` may still be empty.
  virtual int64_t packed_bytes(const DenseView& weight) const = 0;
  virtual int64_t packed_bytes(const AffineView& weight) const = 0;
  virtual int64_t packed_bytes(const SparseOutlierView& weight) const = 0;
  virtual int64_t packed_bytes(const ResidualBinaryView& weight) const = 0;
  /// Repacks a stored matrix [out_features, in_features] in host memory (any alignment) into `blob`.
  virtual void pack(const TensorView& source, const DenseView& weight, void* blob) = 0;
  virtual void pack(const AffineMatrix& source, const AffineView& weight, void* blob) = 0;
  virtual void pack(const SparseOutlierMatrix& source, const SparseOutlierView& weight, void* blob) = 0;
  virtual void pack(const ResidualBinaryMatrix& source, const ResidualBinaryView& weight, void* blob) = 0;

  // Every op. Each call runs op.check() first.
  virtual void run(const Linear<DenseView>& op) = 0;
  virtual void run(const Linear<AffineView>& op) = 0;
  virtual void run(const Linear<SparseOutlierView>& op) = 0;
  virtual void run(const Linear<ResidualBinaryView>& op) = 0;
  virtual void run(const Embedding<DenseView>& op) = 0;
  virtual void run(const Embedding<AffineView>& op) = 0;
  virtual void run(const Embedding<SparseOutlierView>& op) = 0;
  virtual void run(const Embedding<ResidualBinaryView>& op) = 0;
  virtual void run(const GatherRows& op) = 0;
  virtual void run(const LayerNorm& op) = 0;
  virtual void run(const RoundActivations& op) = 0;
  virtual void run(const Attention& op) = 0;
  virtual void run(const Subtract& op) = 0;
  virtual void run(const ChooseTokens& op) = 0;
  virtual void run(const StoreHalfRows& op) = 0;
  virtual void run(const LoadHalfRows& op) = 0;
  virtual void run(const SecondMoment& op) = 0;
  virtual void run(const ColumnSums& op) = 0;
  /// False when h is not positive definite (to working precision) or not finite.
  virtual bool run(const FactorizeInverse& op) = 0;
  virtual void run(const RankUpdate& op) = 0;
  virtual void run(const RoundColumns& op) = 0;

  // Steps back; the rest of the way is SecondMoment and RankUpdate.
  virtual void run(const ActivationBackward& op) = 0;
  virtual void run(const LayerNormBackward& op) = 0;
  virtual void run(const AttentionBackward& op) = 0;
  virtual void run(const CrossEntropyBackward& op) = 0;

  /// As many backends of one thread as this one has threads, for independent work side by side inside parallel_for: they
  /// compute the same bits on what this one allocated and packed. Empty where a batch is better split op by op.
  virtual std::vector<std::unique_ptr<Backend>> lanes() const { return {}; }

  /// Calls body(begin, end) on parts of [0, count), in parallel on the host; used by solvers whose rows are
  /// independent.
  virtual void parallel_for(int64_t count, void (*body)(void* state, int64_t begin, int64_t end),
                            void* state) = 0;
  template <class Body>
  void parallel_for(int64_t count, Body&& body) {
    parallel_for(
        count,
        [](void* state, int64_t begin, int64_t end) {
          (*static_cast<std::remove_reference_t<Body>*>(state))(begin, end);
        },
        const_cast<void*>(static_cast<const void*>(&body)));
  }
};

struct BackendOptions {
  std::string device = "auto";  ///< auto (cuda where there is a usable GPU), cpu, cuda
  int threads = 0;              ///< CPU threads; 0: as many as this process may run on
  std::string isa = "auto";     ///< auto, scalar, avx2, avx512: for tests and comparisons
  /// What linear layers with affine weights make of their input. f32: integers of 24 bits under one power of two
  /// for each token and group, an error like that of f32 sums; on cuda f16 operands and f32 sums. int8, on the CPU:
  /// bytes, a third of the arithmetic. bf16, on cuda: bf16 operands, for inputs beyond the range of f16.
  std::string activations = "f32";
  /// On cuda: results depend neither on the batch nor on how a prompt was cut, at a cost. On the CPU they never do.
  bool deterministic = false;
  bool pin = false;  ///< keep every thread on a processor of its own
};

/// Error when the device is not there or the instruction set is not supported.
std::unique_ptr<Backend> find_backend(const BackendOptions& options);

/// Instruction sets the CPU kernels were compiled for that this machine cannot run; empty when all run.
std::string unsupported_isas();

}  // namespace ballast
