// What this binary is.
#pragma once

#include <string>

namespace ballast {

/// Release number, "0.1.0".
std::string version();
/// "0.1.0 (commit)": what decides results besides the input.
std::string build_name();
/// Several lines: version, commit, compiler, instruction set in use and those that this machine cannot run.
std::string version_text();
/// One line per device: its name for --device and its description, or why it is not there.
std::string devices_text();

}  // namespace ballast
