// Data to measure with.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

namespace ballast {

inline std::vector<float> normal_floats(int64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

}  // namespace ballast
