#include "quantize/curvature.h"

namespace ballast {

Curvature activation_curvature(const Statistics& statistics, bool centred) {
  CHECK(!statistics.moment.empty() && statistics.count > 0);
  const int64_t n = statistics.features;
  Curvature curvature{n, statistics.moment, std::vector<uint8_t>(size_t(n))};
  const double scale = 1 / double(statistics.count);
  for (double& value : curvature.h) value *= scale;
  for (int64_t i = 0; i < n; ++i) curvature.dead[size_t(i)] = curvature.h[size_t(i * n + i)] == 0;
  if (!centred) return curvature;
  const std::vector<double> mean = statistics.mean();
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) curvature.h[size_t(i * n + j)] -= mean[size_t(i)] * mean[size_t(j)];
  return curvature;
}

}  // namespace ballast
