// Reproducible random numbers, the same on every standard library.
#pragma once

#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

namespace ballast::test {

/// SplitMix64 (Steele, Lea, Flood 2014).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t bits() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  /// Uniform in [0, limit).
  int64_t below(int64_t limit) { return int64_t(bits() % uint64_t(limit)); }
  /// Uniform in [low, high).
  float uniform(float low = -1, float high = 1) {
    return low + (high - low) * float(bits() >> 40) * 0x1p-24f;
  }

  std::vector<float> floats(int64_t count, float low = -1, float high = 1) {
    std::vector<float> out(static_cast<size_t>(count));
    for (float& value : out) value = uniform(low, high);
    return out;
  }
  std::vector<int32_t> permutation(int64_t count) {
    std::vector<int32_t> out(static_cast<size_t>(count));
    std::iota(out.begin(), out.end(), 0);
    for (int64_t i = count - 1; i > 0; --i) std::swap(out[size_t(i)], out[size_t(below(i + 1))]);
    return out;
  }

 private:
  uint64_t state_;
};

}  // namespace ballast::test
