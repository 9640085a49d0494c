#include "kernels/backend.h"

#include "kernels/cpu/cpu_backend.h"
#if defined(BALLAST_CUDA)
#include "kernels/cuda/cuda_backend.h"
#endif

namespace ballast {

std::unique_ptr<Backend> find_backend(const BackendOptions& options) {
  if (options.device != "auto" && options.device != "cpu" && options.device != "cuda")
    throw Error(str("--device is \"", options.device, "\", expected auto, cpu or cuda"));
#if defined(BALLAST_CUDA)
  // auto is the CPU until tests/device.sh has passed on a GPU: the kernels have only run in the emulator.
  if (options.device == "cuda") return make_cuda_backend(options);
#else
  if (options.device == "cuda")
    throw Error("--device cuda: this build has no CUDA backend; use --device cpu");
#endif
  return make_cpu_backend(options);
}

}  // namespace ballast
