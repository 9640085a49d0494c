// Slopes of f64 functions by central differences.
#pragma once

#include <cmath>
#include <vector>

namespace ballast::test {

/// d f(x) / d x[i] for each i. With step h the error is h²/6·|f'''| + 2^-53·|f|/h, about 1e-9 for functions of
/// order 1: far below the f32 rounding of what it is compared with.
template <class Function>
std::vector<double> slopes(const Function& f, std::vector<double> x) {
  constexpr double kStep = 0x1p-16;
  std::vector<double> out;
  for (double& value : x) {
    const double at = value;
    value = at + kStep;
    const double above = f(x);
    value = at - kStep;
    const double below = f(x);
    value = at;
    out.push_back((above - below) / (2 * kStep));
  }
  return out;
}

inline std::vector<double> doubles(const std::vector<float>& values) {
  return {values.begin(), values.end()};
}
inline double dot(const std::vector<double>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * double(b[i]);
  return sum;
}

}  // namespace ballast::test
