// Ops that this backend does not have yet. Quantizing needs them, and models whose activations are quantized.
#include "kernels/cuda/cuda_backend.h"

namespace ballast {

void CudaBackend::refuse(const char* what) {
  throw Error(str("--device cuda cannot compute ", what, " yet; use --device cpu"));
}

void CudaBackend::run(const RoundActivations&) {
  refuse("quantized activations");
}
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
