// One case of AttentionBackward, for the tests of every backend; without GoogleTest, which machines with a GPU may lack.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/backend.h"
#include "tests/support/random.h"

namespace ballast::test {

struct AttentionGradients {
  int64_t heads, head_dim;
  std::vector<int32_t> lengths;  ///< of the sequences
  Mask mask;

  int64_t tokens() const {
    int64_t total = 0;
    for (const int32_t length : lengths) total += length;
    return total;
  }
  int64_t width() const { return heads * head_dim; }

  struct Inputs {
    std::vector<float> x, d_out;  ///< x: q, k and v one after the other
  };
  Inputs inputs() const {
    const int64_t size = tokens() * width();
    Random random{uint64_t(size)};
    return {random.floats(3 * size), random.floats(size)};
  }

  /// dq, dk and dv one after the other, added to 0.5.
  std::vector<float> run(Backend& backend, const Inputs& inputs) const {
    std::vector<AttentionSpan> spans;
    int32_t first = 0;
    for (const int32_t length : lengths) {
      spans.push_back({.first_row = first, .rows = length});
      first += length;
    }
    const int64_t size = tokens() * width();
    std::vector<float> d(size_t(3 * size), 0.5f);
    const auto part = [&](const std::vector<float>& data, int64_t index) {
      return OutputView(const_cast<float*>(data.data()) + index * size, DType::f32, {tokens(), width()});
    };
    backend.run(AttentionBackward{.q = part(inputs.x, 0),
                                  .k = part(inputs.x, 1),
                                  .v = part(inputs.x, 2),
                                  .d_out = part(inputs.d_out, 0),
                                  .dq = part(d, 0),
                                  .dk = part(d, 1),
                                  .dv = part(d, 2),
                                  .spans = spans,
                                  .heads = heads,
                                  .scale = float(1 / std::sqrt(double(head_dim))),
                                  .mask = mask});
    return d;
  }

  /// Scores are below sqrt(head_dim) and off by head_dim + 3 roundings of that, probabilities by twice as much, relatively;
  /// d_out·v is below head_dim. A key collects its sums from up to `tokens` queries.
  double bound() const {
    const double dim = double(head_dim), rows = double(tokens()),
                 roundings = dim + rows + 2 * (dim + 3) * std::sqrt(dim) + 20;
    return 0x1p-24 * roundings * (2 * dim + 1) * std::max(1.0, std::log(rows) + 1);
  }
  std::string text() const { return str(heads, " heads of ", head_dim, ", ", tokens(), " tokens"); }
};

}  // namespace ballast::test
