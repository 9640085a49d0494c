#include "tools/flags.h"

#include <sstream>

namespace ballast {
namespace {

constexpr size_t kTextColumn = 28, kWidth = 100;

// `text` in lines of at most kWidth, from kTextColumn on.
std::string wrapped(const std::string& text) {
  std::istringstream words(text);
  std::string lines;
  size_t column = kTextColumn;
  for (std::string word; words >> word;) {
    if (column > kTextColumn && column + 1 + word.size() > kWidth) {
      lines += "\n" + std::string(kTextColumn, ' ');
      column = kTextColumn;
    }
    if (column > kTextColumn) {
      lines += ' ';
      ++column;
    }
    lines += word;
    column += word.size();
  }
  return lines;
}

/// Names and value on the left, description wrapped on the right. CLI11's own layout adds environment
/// variables and ranges to every line.
class HelpLayout : public CLI::Formatter {
 public:
  HelpLayout() { column_width(kTextColumn); }

  std::string make_option(const CLI::Option* option, bool positional) const override {
    std::string left = "  " + make_option_name(option, positional) + make_option_opts(option);
    left += left.size() + 2 > kTextColumn ? "\n" + std::string(kTextColumn, ' ')
                                          : std::string(kTextColumn - left.size(), ' ');
    return left + wrapped(make_option_desc(option)) + "\n";
  }

  std::string make_option_opts(const CLI::Option* option) const override {
    const std::string type = option->get_type_name();  // "N:INT in [0 - 5]": the name, then its checks
    return option->get_items_expected_max() == 0 || type.empty() ? "" : " " + type.substr(0, type.find(':'));
  }

  std::string make_option_desc(const CLI::Option* option) const override {
    std::string text = option->get_description();
    if (option->get_required()) text += " (required)";
    if (!option->get_default_str().empty()) text += " [" + option->get_default_str() + "]";
    return text;
  }
};

void name_variables(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    if (option->get_lnames().empty()) continue;
    const std::string& flag = option->get_lnames().front();
    if (flag == "help" || flag == "version" || flag == "list-devices") continue;
    std::string variable = "BALLAST_";
    for (const char letter : flag)
      variable += letter == '-' ? '_' : char(std::toupper(static_cast<unsigned char>(letter)));
    option->envname(variable);
  }
}

}  // namespace

void set_up_flags(CLI::App& root) {
  root.formatter(std::make_shared<HelpLayout>());
  root.fallthrough();
  root.require_subcommand(0, 1);
  root.set_help_flag("-h,--help", "This text");
  root.footer(
      "--device, --threads, --quiet and --no-color may also stand behind a subcommand (see ballast --help).\n"
      "Every flag can also be set in the environment: --max-tokens as BALLAST_MAX_TOKENS; the flag wins.\n"
      "Exit status: 0 done, 1 failed while running, 2 wrong arguments or input, 130 interrupted.");
}

void name_environment_variables(CLI::App& root, int argc, const char* const* argv) {
  name_variables(root);
  // The other subcommands must not read theirs: one variable may mean different things to two of them.
  const auto all = root.get_subcommands([](const CLI::App*) { return true; });
  for (int i = 1; i < argc; ++i) {
    for (CLI::App* app : all)
      if (app->get_name() == argv[i]) return name_variables(*app);
  }
}

void add_activations_flag(CLI::App& app, std::string& activations) {
  app.add_option("--activations", activations,
                 "What quantized layers compute with: f32, or on the CPU int8, faster and less exact; on "
                 "cuda bf16, for inputs beyond the range of f16")
      ->type_name("NAME")
      ->check(CLI::IsMember({"f32", "int8", "bf16"}))
      ->capture_default_str();
}

void add_cache_type_flag(CLI::App& app, CacheType& type) {
  app.add_option_function<std::string>(
         "--kv-cache-dtype",
         [&type](const std::string& name) { type = name == "int8" ? CacheType::int8 : CacheType::f32; },
         "How earlier tokens' keys and values are kept: f32, or int8 in little more than a quarter of the "
         "memory, less exact")
      ->type_name("NAME")
      ->check(CLI::IsMember({"f32", "int8"}))
      ->default_str("f32");
}

std::string help_command(const CLI::App& root) {
  std::string command = root.get_name();
  for (const CLI::App* app : root.get_subcommands()) command += " " + app->get_name();
  return command + " --help";
}

}  // namespace ballast
