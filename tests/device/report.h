// What the programs for a machine with a GPU share: no GoogleTest, so that nothing but CUDA and CMake has to be there.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "kernels/check.h"

namespace ballast::device {

/// Exit codes: what was checked failed; there is no GPU to check.
inline constexpr int kFailed = 1, kSkipped = 77;

/// ‖actual − expected‖ / ‖expected‖; NaN, which is no less than anything, where a value is missing.
inline double relative_error(const std::vector<float>& actual, const std::vector<float>& expected) {
  if (actual.size() != expected.size() || actual.empty()) return NAN;
  double difference = 0, size = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    difference += (double(actual[i]) - expected[i]) * (double(actual[i]) - expected[i]);
    size += double(expected[i]) * expected[i];
  }
  return std::sqrt(difference / size);
}

/// Counts and prints findings.
class Report {
 public:
  void expect_below(double error, double bound, const std::string& what) {
    ++checks_;
    if (error <= bound) return;
    ++failures_;
    std::printf("FAILED %s: error %.3g, at most %.3g\n", what.c_str(), error, bound);
  }
  void expect(bool holds, const std::string& what) {
    ++checks_;
    if (holds) return;
    ++failures_;
    std::printf("FAILED %s\n", what.c_str());
  }
  int finish(const char* name) const {
    std::printf("%s: %d checks, %d failed\n", name, checks_, failures_);
    return failures_ == 0 ? 0 : kFailed;
  }

 private:
  int checks_ = 0, failures_ = 0;
};

}  // namespace ballast::device
