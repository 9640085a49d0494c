// Linear layers whose weights have outliers.
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

void CudaBackend::run_outliers(const Linear<SparseOutlierView>& op) {
  const auto run_all = [&]<int Bits, class Half>(std::integral_constant<int, Bits>, Half) {
    const int64_t tokens = op.x.shape[0];
    for (int64_t first = 0; first < tokens;) {
      int64_t count = std::min<int64_t>(32, tokens - first);
      if (count <= 8 || !run_tokens<Bits, RealMeta, Half, 4>(part_of(op, first, count))) {
        count = std::min<int64_t>(8, count);
        CHECK((run_tokens<Bits, RealMeta, Half, 1>(part_of(op, first, count))),
              "a block of eight tokens needs more shared memory than there is");
      }
      first += count;
    }
  };
  with_bits(op.weight.bits, [&](auto bits) {
    if (half_ == DType::bf16) return run_all(bits, dev::BF16());
    run_all(bits, dev::F16());
  });
}

}  // namespace ballast
