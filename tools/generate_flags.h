// The flags of `ballast generate`.
#pragma once

#include "tools/generate.h"
#include "tools/subcommand.h"

namespace ballast {

void add_generate_flags(CLI::App& app, GenerateOptions& options);

}  // namespace ballast
