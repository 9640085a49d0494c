// Linear layers whose weights have outliers or tables.
#include "kernels/cuda/linear_tokens.h"

namespace ballast {

using namespace cuda;

namespace {

// Calls function(constant) with the width as a type.
template <class Function>
void with_bits(int bits, Function&& function) {
  switch (bits) {
    case 2:
      return function(std::integral_constant<int, 2>());
    case 3:
      return function(std::integral_constant<int, 3>());
    case 4:
      return function(std::integral_constant<int, 4>());
    default:
      return function(std::integral_constant<int, 8>());
  }
}

}  // namespace

template <int Bits, class Meta, class Half, class View>
void CudaBackend::run_small(const Linear<View>& op) {
  const int64_t tokens = op.x.shape[0];
  for (int64_t first = 0; first < tokens;) {
    int64_t count = std::min<int64_t>(32, tokens - first);
    if (count <= 8 || !run_tokens<Bits, Meta, Half, 4>(part_of(op, first, count))) {
      count = std::min<int64_t>(8, count);
      CHECK((run_tokens<Bits, Meta, Half, 1>(part_of(op, first, count))),
            "a block of eight tokens needs more shared memory than there is");
    }
    first += count;
  }
}

void CudaBackend::run_outliers(const Linear<SparseOutlierView>& op) {
  with_bits(op.weight.bits, [&]<int Bits>(std::integral_constant<int, Bits>) {
    if (half_ == DType::bf16) return run_small<Bits, RealMeta, dev::BF16>(op);
    run_small<Bits, RealMeta, dev::F16>(op);
  });
}

void CudaBackend::run_tables(const Linear<ResidualBinaryView>& op) {
  if (half_ == DType::bf16) return run_small<2, TableMeta, dev::BF16>(op);
  run_small<2, TableMeta, dev::F16>(op);
}

}  // namespace ballast
