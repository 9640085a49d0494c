#include "kernels/backend.h"

#include "kernels/cpu/cpu_backend.h"

namespace ballast {

std::unique_ptr<Backend> find_backend(const BackendOptions& options) {
  if (options.device == "cuda")
    throw Error("--device cuda: this build has no CUDA backend; use --device cpu");
  if (options.device != "auto" && options.device != "cpu")
    throw Error(str("--device is \"", options.device, "\", expected auto, cpu or cuda"));
  return make_cpu_backend(options);
}

}  // namespace ballast
