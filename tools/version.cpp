#include "tools/version.h"

#include <fmt/format.h>

#include "kernels/backend.h"
#include "tools/commit.h"

namespace ballast {
namespace {

#if defined(__clang__)
constexpr const char* kCompiler = "clang " __clang_version__;
#else
constexpr const char* kCompiler = "gcc " __VERSION__;
#endif

#if defined(NDEBUG)
constexpr const char* kBuild = "optimized";
#else
constexpr const char* kBuild = "with assertions";
#endif

}  // namespace

std::string version() {
  return BALLAST_VERSION;
}

std::string build_name() {
  return fmt::format("{} ({})", version(), kCommit);
}

std::string version_text() {
  const std::string missing = unsupported_isas();
  return fmt::format("ballast {}\ncommit    {}\ncompiler  {}, {}\ndevice    {}\n{}", version(), kCommit,
                     kCompiler, kBuild, find_backend({.device = "cpu"})->description(),
                     missing.empty() ? "" : fmt::format("cannot run {} code on this machine\n", missing));
}

std::string devices_text() {
  std::string text;
  for (const char* device : {"cpu", "cuda"}) {
    std::string what;
    try {
      what = find_backend({.device = device})->description();
    } catch (const Error& error) {
      what = fmt::format("not available: {}", error.what());
    }
    text += fmt::format("{:<6}{}\n", device, what);
  }
  return text;
}

}  // namespace ballast
