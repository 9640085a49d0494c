// How a subcommand joins the `ballast` binary: one file that defines `add_NAME`, a declaration here, a row in
// main.cpp.
//
//   Subcommand add_inspect(CLI::App& root, const GlobalOptions& global) {
//     auto options = std::make_shared<InspectOptions>();
//     CLI::App* app = root.add_subcommand("inspect", "What is in a checkpoint");
//     app->add_option("folder", options->folder, "…")->required();
//     return {app, [options, &global] { inspect(*options, global); }};
//   }
//
// main gives every long flag its BALLAST_… environment variable, runs the chosen command after all flags are
// parsed, and turns exceptions into exit codes: Error 2, Interrupted 130, everything else 1. Results go to
// stdout, all else to stderr.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

#include "tools/global_options.h"

namespace ballast {

struct Subcommand {
  CLI::App* app = nullptr;
  std::function<void()> run;
};

Subcommand add_generate(CLI::App& root, const GlobalOptions& global);
Subcommand add_perplexity(CLI::App& root, const GlobalOptions& global);
Subcommand add_quantize(CLI::App& root, const GlobalOptions& global);
Subcommand add_export(CLI::App& root, const GlobalOptions& global);
Subcommand add_classify(CLI::App& root, const GlobalOptions& global);
Subcommand add_evaluate(CLI::App& root, const GlobalOptions& global);
Subcommand add_report(CLI::App& root, const GlobalOptions& global);
Subcommand add_inspect(CLI::App& root, const GlobalOptions& global);
Subcommand add_serve(CLI::App& root, const GlobalOptions& global);
Subcommand add_bench(CLI::App& root, const GlobalOptions& global);

}  // namespace ballast
