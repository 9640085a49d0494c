#include "quantize/report_page.h"

#include <string_view>

#include "engine/io/json.h"
#include "quantize/page_parts.h"

namespace ballast {
namespace {

using nlohmann::json;

constexpr double kHuge = 1e300;

void check_quantization(const ReportSource& source) {
  (void)json_number(source.json, "bits_per_weight", source.name, 0, kHuge);
  (void)json_string(source.json, "method", source.name);
  size_t index = 0;
  for (const json& layer : json_array(source.json, "layers", source.name)) {
    const std::string what = str(source.name, ": layers: item ", index++);
    (void)json_string(layer, "name", what);
    for (const char* key : {"bits_per_weight", "error_before", "error_after"})
      (void)json_number(layer, key, what, 0, kHuge);
  }
}

void check_perplexity(const ReportSource& source) {
  for (const char* key : {"perplexity", "bits_per_weight"})
    (void)json_number(source.json, key, source.name, 0, kHuge);
  for (const char* key : {"model", "dataset", "protocol", "data_hash"})
    (void)json_string(source.json, key, source.name);
}

/// As JSON inside a script element: without `<`, nothing can end the element or open a comment.
std::string inert(const json& value) {
  const std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  std::string out;
  out.reserve(text.size());
  for (const char c : text) c == '<' ? out += "\\u003c" : out += c;
  return out;
}

void replace_mark(std::string& page, std::string_view mark, std::string_view content) {
  const size_t at = page.find(mark);
  CHECK(at != std::string::npos, mark);
  page.replace(at, mark.size(), content);
}

}  // namespace

std::string report_page(const std::vector<ReportSource>& sources) {
  json data = {{"runs", json::array()}, {"scores", json::array()}};
  for (const ReportSource& source : sources) {
    if (!source.json.is_object())
      throw Error(source.name + ": expected an object, got " + shown_json(source.json));
    if (source.json.contains("layers")) {
      check_quantization(source);
      data["runs"].push_back(source.json);
    } else if (source.json.contains("perplexity")) {
      check_perplexity(source);
      data["scores"].push_back(source.json);
    } else {
      throw Error(source.name +
                  ": expected what quantize --json or perplexity --json print, got neither "
                  "`layers` nor `perplexity`");
    }
  }
  std::string page(kPageHtml);
  replace_mark(page, "/*STYLE*/", kPageCss);
  replace_mark(page, "/*SCRIPT*/", std::string(kChartsJs) + std::string(kPageJs));
  // Last, so that no mark is looked for inside data.
  replace_mark(page, "/*DATA*/", inert(data));
  return page;
}

}  // namespace ballast
