#include "kernels/cuda/linear_affine.h"

template void ballast::CudaBackend::run_fragments<3>(const Linear<AffineView>&);
