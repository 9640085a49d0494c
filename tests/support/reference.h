// Comparison of kernel results with f64 references and with each other.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <span>
#include <string>
#include <vector>

namespace ballast::test {

/// Largest relative error of one rounding to f32 and to f64.
inline constexpr double kRound32 = 0x1p-24;
inline constexpr double kRound64 = 0x1p-53;

/// An exact value and how far a correct f32 computation may be from it.
struct Expected {
  double value = 0;
  double bound = 0;
};

/// Every element within its bound; reports the first that is not.
inline testing::AssertionResult within_bounds(std::span<const float> actual,
                                              std::span<const Expected> expected) {
  if (actual.size() != expected.size())
    return testing::AssertionFailure() << actual.size() << " values, expected " << expected.size();
  for (size_t i = 0; i < actual.size(); ++i)
    if (!(std::abs(double(actual[i]) - expected[i].value) <= expected[i].bound))
      return testing::AssertionFailure() << "element " << i << " is " << actual[i] << ", expected "
                                         << expected[i].value << " +- " << expected[i].bound;
  return testing::AssertionSuccess();
}

/// Identical bit patterns; reports the first difference.
template <class T>
testing::AssertionResult same_bits(std::span<const T> actual, std::span<const T> expected) {
  if (actual.size() != expected.size())
    return testing::AssertionFailure() << actual.size() << " values, expected " << expected.size();
  for (size_t i = 0; i < actual.size(); ++i)
    if (std::memcmp(&actual[i], &expected[i], sizeof(T)) != 0)
      return testing::AssertionFailure()
             << "element " << i << " of " << actual.size() << " is " << actual[i] << ", expected "
             << expected[i] << ", a difference of " << double(actual[i]) - double(expected[i]);
  return testing::AssertionSuccess();
}
template <class T>
testing::AssertionResult same_bits(const std::vector<T>& actual, const std::vector<T>& expected) {
  return same_bits(std::span<const T>(actual), std::span<const T>(expected));
}

/// Runs body and returns the message of the Exception it throws; fails the test when it throws none.
template <class Exception, class Body>
std::string message_of(Body&& body) {
  try {
    body();
  } catch (const Exception& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

}  // namespace ballast::test
