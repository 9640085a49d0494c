#include "quantize/statistics.h"

#include <algorithm>

namespace ballast {

Statistics::Statistics(int64_t width, int64_t positions, bool second_moment)
    : features(width),
      sum(size_t(width)),
      moment(second_moment ? size_t(width * width) : 0),
      position_sum(size_t(positions * width)),
      position_count(size_t(positions)) {}

void Statistics::add(Backend& backend, const TensorView& x, const TensorView& positions) {
  const int64_t tokens = x.shape[0];
  CHECK(x.shape[1] == features && positions.shape[0] == tokens);
  if (!moment.empty())
    backend.run(SecondMoment{
        .a = x, .b = x, .out = moment_there_.place(backend, moment), .out_device = backend.device()});
  backend.run(ColumnSums{.x = x,
                         .positions = positions,
                         .sums = sum.data(),
                         .position_sums = position_sum.data(),
                         .position_count = int64_t(position_count.size()),
                         .zeros = &zeros});
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t position = positions.as<int32_t>()[t];
    if (position < int64_t(position_count.size())) ++position_count[size_t(position)];
  }
  count += tokens;
}

std::vector<double> Statistics::mean() const {
  CHECK(count > 0, "no calibration tokens were seen");
  std::vector<double> out(sum);
  for (double& value : out) value /= double(count);
  return out;
}

std::vector<double> Statistics::position_mean(int64_t position) const {
  const double* here = position_sum.data() + position * features;
  std::vector<double> out(here, here + features);
  const double tokens = double(std::max<int64_t>(1, position_count[size_t(position)]));
  for (double& value : out) value /= tokens;
  return out;
}

}  // namespace ballast
