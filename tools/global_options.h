// Flags of every subcommand.
#pragma once

#include "kernels/backend.h"

namespace ballast {

/// Flags that may stand before or after the subcommand's name. Filled by the time `Subcommand::run` runs.
struct GlobalOptions {
  BackendOptions backend;  ///< --device, --threads
  /// --activations belongs to the subcommands that run a model.
  BackendOptions backend_with(const std::string& activations) const {
    BackendOptions options = backend;
    options.activations = activations;
    return options;
  }
  bool quiet = false;     ///< --quiet: warnings and errors only on stderr, no progress
  bool no_color = false;  ///< --no-color, or NO_COLOR in the environment
};

}  // namespace ballast
