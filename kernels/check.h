// Errors and contracts.
//   Error   outside input is wrong (a file, a flag, a request). The message names the object, what was expected and
//           what was got; it is caught in main and in the request handler only.
//   CHECK   a contract inside the program is broken. Always on. Throws ContractError with the expression's text.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace ballast {

/// Wrong outside input. what() is one line meant for the user.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The machine let us down while running (disk full, short write, out of memory): exit code 1, not 2.
class RuntimeFailure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A broken contract between parts of the program: a bug, never the user's fault.
class ContractError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

/// Concatenates its arguments as operator<< prints them.
template <class... Parts>
std::string str(const Parts&... parts) {
  std::ostringstream out;
  if constexpr (sizeof...(parts) > 0) (out << ... << parts);
  return out.str();
}

[[noreturn]] inline void check_failed(const char* expression, const char* file, int line,
                                      const std::string& detail) {
  throw ContractError(str(file, ":", line, ": ", expression, detail.empty() ? "" : ": ", detail));
}

}  // namespace ballast

/// CHECK(condition) or CHECK(condition, "detail ", value, …)
#define CHECK(condition, ...)                                                                               \
  do {                                                                                                      \
    if (!(condition)) ::ballast::check_failed(#condition, __FILE__, __LINE__, ::ballast::str(__VA_ARGS__)); \
  } while (false)
