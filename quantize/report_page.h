// What quantization runs did, as one HTML page that needs nothing but itself: no network, no other file.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace ballast {

/// A JSON object that `ballast quantize --json` or `ballast perplexity --json` printed, and where it came from.
struct ReportSource {
  nlohmann::json json;
  std::string name;  ///< for messages
};

/// The page: for each quantization run (an object with `layers`) its summary, charts over its layers and a
/// table of them; for the perplexity runs (objects with `perplexity`) perplexity against bits per weight, one
/// chart for each set of runs on the same text and protocol. Numeric fields of layers that the page does not
/// know are shown as they come. Error for an object that is neither, or that lacks a field.
///
/// All data stand in one inert script element in which `<` is escaped, and the page's code writes them as
/// text, never as markup; a content security policy in the page forbids loads of any kind.
std::string report_page(const std::vector<ReportSource>& sources);

}  // namespace ballast
