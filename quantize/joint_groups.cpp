#include "quantize/joint_groups.h"

#include <algorithm>

namespace ballast {

void JointGroupRounder::start_group(int64_t, int64_t, std::span<const float>) {
  CHECK(false, "groups begin for all rows at once");
}

void JointGroupRounder::walk(Backend& backend, const ColumnBlock& block) {
  CHECK(block.dynamic_groups);
  const int64_t rows = block.work.shape[0], n = block.factor.size;
  for (int64_t first = block.start; first < block.stop;) {
    const int64_t group = first / block.group_size;
    const int64_t last = std::min(block.stop, (group + 1) * block.group_size);
    if (first % block.group_size == 0) {
      const int64_t columns = std::min(block.group_size, n - first);
      TensorView weights(block.work.as<float>() + first, DType::f32, {rows, columns});
      weights.strides[0] = block.work.strides[0];
      start_groups(backend, group, weights);
    }
    backend.parallel_for(rows, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        float* w = block.work.row(row);
        for (int64_t i = first; i < last; ++i) {
          const float* u = block.u.row(i - block.start) - block.start;
          w[i] = (w[i] - round(row, block.factor.order[size_t(i)], w[i])) / u[i];
          for (int64_t j = i + 1; j < block.stop; ++j) w[j] -= w[i] * u[j];
        }
      }
    });
    first = last;
  }
}

}  // namespace ballast
