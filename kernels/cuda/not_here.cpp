// Ops that this backend does not have yet. Nothing that runs a model for its results needs them; quantizing does.
#include "kernels/cuda/cuda_backend.h"

namespace ballast {
namespace {

[[noreturn]] void refuse(const char* what) {
  throw Error(str("--device cuda cannot compute ", what, " yet; use --device cpu"));
}

}  // namespace

void CudaBackend::run(const StoreHalfRows&) {
  refuse("rows in half the memory");
}
void CudaBackend::run(const LoadHalfRows&) {
  refuse("rows in half the memory");
}
void CudaBackend::run(const SecondMoment&) {
  refuse("second moments");
}
bool CudaBackend::run(const FactorizeInverse&) {
  refuse("factorizations");
}
void CudaBackend::run(const RankUpdate&) {
  refuse("rank updates");
}
void CudaBackend::run(const RoundColumns&) {
  refuse("column walks");
}
void CudaBackend::run(const ActivationBackward&) {
  refuse("gradients");
}
void CudaBackend::run(const LayerNormBackward&) {
  refuse("gradients");
}
void CudaBackend::run(const AttentionBackward&) {
  refuse("gradients");
}
void CudaBackend::run(const CrossEntropyBackward&) {
  refuse("gradients");
}

}  // namespace ballast
