// What all flags share: how help looks, and an environment variable for each.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "engine/runtime/kv_cache.h"

namespace ballast {

/// Help layout and rules for `root` and the subcommands added to it afterwards.
void set_up_flags(CLI::App& root);

/// Lets BALLAST_LONG_NAME stand for --long-name, for the global flags and for those of the subcommand that
/// the arguments name. A flag that is given wins.
void name_environment_variables(CLI::App& root, int argc, const char* const* argv);

/// --activations, for subcommands that run a model.
void add_activations_flag(CLI::App& app, std::string& activations);
/// --kv-cache-dtype, for subcommands that keep keys and values. `type` must outlive the parsing.
void add_cache_type_flag(CLI::App& app, CacheType& type);

/// "ballast generate --help", for the subcommand that was parsed, if any.
std::string help_command(const CLI::App& root);

}  // namespace ballast
