// The `ballast` binary: global flags, the table of subcommands, exit codes.
#include <fmt/format.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <array>
#include <cstdlib>

#include "tools/console.h"
#include "tools/flags.h"
#include "tools/subcommand.h"
#include "tools/version.h"

namespace ballast {
namespace {

constexpr std::array kSubcommands = {add_generate, add_perplexity, add_serve,  add_quantize, add_export,
                                     add_classify, add_evaluate,   add_report, add_inspect,  add_bench};

void set_up_log(const GlobalOptions& global) {
  const bool color = !global.no_color && std::getenv("NO_COLOR") == nullptr;
  auto log =
      spdlog::stderr_color_mt("ballast", color ? spdlog::color_mode::automatic : spdlog::color_mode::never);
  log->set_pattern("%^ballast:%$ %v");
  log->set_level(global.quiet ? spdlog::level::warn : spdlog::level::info);
  spdlog::set_default_logger(std::move(log));
}

// What went wrong, on one line whatever names it quotes.
void report(std::string message) {
  for (char& byte : message)
    if (byte == '\n' || byte == '\r') byte = ' ';
  spdlog::error(message);
}

int run_command(const Subcommand& command) {
  try {
    catch_interrupts();
    command.run();
    return kExitDone;
  } catch (const Interrupted&) {
    return kExitInterrupted;
  } catch (const Error& error) {
    report(error.what());
    return kExitWrongInput;
  } catch (const ContractError& error) {
    report(str("internal error: ", error.what()));
  } catch (const std::bad_alloc&) {
    report("out of memory");
  } catch (const std::exception& error) {
    report(error.what());
  }
  return kExitFailed;
}

int run(int argc, char** argv) {
  GlobalOptions global;
  bool show_version = false, list_devices = false;
  CLI::App app(
      "Runs and quantizes OPT language models and ViT image classifiers. Results go to standard output, "
      "everything else to standard "
      "error.",
      "ballast");
  set_up_flags(app);
  app.add_option("--device", global.backend.device, "cuda, cpu, or auto: the CPU for now")
      ->type_name("NAME")
      ->capture_default_str();
  app.add_option("--threads", global.backend.threads, "Processor threads; 0: as many as this process may use")
      ->type_name("N")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  app.add_option("--isa", global.backend.isa, "Processor instructions: auto, scalar, avx2 or avx512; results are the same")
      ->type_name("NAME")
      ->capture_default_str();
  app.add_flag("--deterministic", global.backend.deterministic,
               "With cuda: the same results in any batch, slower; on the processor they always are");
  app.add_flag("--pin", global.backend.pin, "Keep every thread on a processor of its own");
  app.add_flag("--quiet", global.quiet, "Only warnings and errors on standard error");
  app.add_flag("--no-color", global.no_color, "No colors on standard error");
  app.add_flag("--version", show_version, "Version, commit, compiler and instruction set");
  app.add_flag("--list-devices", list_devices, "Devices that --device can name");
  std::vector<Subcommand> commands;
  for (const auto& add : kSubcommands) commands.push_back(add(app, global));
  name_environment_variables(app, argc, argv);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    set_up_log(global);
    report(str(error.what(), " (see ", help_command(app), ")"));
    return kExitWrongInput;
  }
  set_up_log(global);
  if (show_version || list_devices) {
    print(show_version ? version_text() : devices_text());
    return kExitDone;
  }
  for (const Subcommand& command : commands)
    if (command.app->parsed()) return run_command(command);
  fmt::print(stderr, "{}", app.help());
  return kExitWrongInput;
}

}  // namespace
}  // namespace ballast

int main(int argc, char** argv) {
  return ballast::run(argc, argv);
}
