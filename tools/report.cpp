// ballast report: earlier runs on one page.
#include "tools/report.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/io/json.h"
#include "engine/io/output_file.h"
#include "tools/console.h"
#include "tools/subcommand.h"

namespace ballast {
namespace fs = std::filesystem;
namespace {

constexpr uint64_t kLargestRun = uint64_t(64) << 20;

struct ReportOptions {
  std::vector<std::string> runs;
  std::string output;
};

void report_runs(const ReportOptions& options) {
  check_report_path(options.output);
  std::vector<ReportSource> sources;
  for (const std::string& file : options.runs)
    sources.push_back({parse_json(read_file(file, kLargestRun), file), file});
  write_report(options.output, sources);
  const auto scores = std::count_if(sources.begin(), sources.end(), [](const ReportSource& source) {
    return !source.json.contains("layers");
  });
  print(fmt::format("{}: {} quantized, {} measured\n", options.output, int64_t(sources.size()) - scores,
                    scores));
}

}  // namespace

void check_report_path(const std::string& path) {
  std::error_code error;
  if (fs::is_directory(path, error)) throw Error(path + ": is a folder, expected a file name for the report");
  const fs::path parent = fs::absolute(path, error).parent_path();
  if (!fs::is_directory(parent, error))
    throw Error(fmt::format("{}: the folder {} is not there", path, parent.string()));
}

void write_report(const std::string& path, const std::vector<ReportSource>& sources) {
  replace_file(path, report_page(sources));
}

Subcommand add_report(CLI::App& root, const GlobalOptions&) {
  auto options = std::make_shared<ReportOptions>();
  CLI::App* app = root.add_subcommand("report", "Show earlier runs on one HTML page");
  app->add_option("runs", options->runs, "What quantize --json and perplexity --json printed")
      ->required()
      ->type_name("JSON");
  app->add_option("-o,--output", options->output, "HTML file to write")->required()->type_name("FILE");
  return {app, [options] { report_runs(*options); }};
}

}  // namespace ballast
