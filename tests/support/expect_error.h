// Expecting a failure by its type and a part of its message.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "kernels/check.h"

namespace ballast {

/// Succeeds if `run` throws a Failure whose message is one line and contains `part`.
template <class Failure = Error, class Run>
::testing::AssertionResult throws_with(const std::string& part, const Run& run) {
  try {
    run();
  } catch (const Failure& failure) {
    const std::string message = failure.what();
    if (message.find('\n') != message.npos)
      return ::testing::AssertionFailure() << "several lines: " << message;
    if (message.size() > 1000)
      return ::testing::AssertionFailure() << "long message: " << message.substr(0, 1000);
    if (message.find(part) == message.npos)
      return ::testing::AssertionFailure() << "expected \"" << part << "\" in: " << message;
    return ::testing::AssertionSuccess();
  } catch (const std::exception& other) {
    return ::testing::AssertionFailure() << "another exception: " << other.what();
  }
  return ::testing::AssertionFailure() << "no exception";
}

/// The same for several parts of an Error's message.
template <class Run>
void expect_error(const Run& run, std::initializer_list<std::string> parts) {
  for (const std::string& part : parts) EXPECT_TRUE(throws_with(part, run));
}

}  // namespace ballast
