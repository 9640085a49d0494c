// Repeated measurements of one thing.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <vector>

namespace ballast {

/// Seconds of a steady clock.
inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Samples {
  std::vector<double> values;

  void add(double value) { values.push_back(value); }
  bool empty() const { return values.empty(); }
  double lowest() const { return empty() ? 0 : *std::min_element(values.begin(), values.end()); }
  double highest() const { return empty() ? 0 : *std::max_element(values.begin(), values.end()); }
  double mean() const {
    double total = 0;
    for (const double value : values) total += value;
    return empty() ? 0 : total / double(values.size());
  }
  double median() const {
    if (empty()) return 0;
    std::vector<double> sorted = values;
    std::sort(sorted.begin(), sorted.end());
    const size_t half = sorted.size() / 2;
    return sorted.size() % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  }
  /// Of one sample, not of the mean.
  double deviation() const {
    if (values.size() < 2) return 0;
    const double middle = mean();
    double squares = 0;
    for (const double value : values) squares += (value - middle) * (value - middle);
    return std::sqrt(squares / double(values.size() - 1));
  }
};

}  // namespace ballast
