#include "quantize/report_page.h"

#include <gtest/gtest.h>

#include <regex>

#include "engine/io/json.h"
#include "quantize/report.h"
#include "tests/support/expect_error.h"

namespace ballast {
namespace {

using nlohmann::json;

json run_json() {
  QuantizeReport report;
  report.recipe.method = "gptq";
  report.layers.push_back({.name = "model.decoder.layers.0.fc1",
                           .out_features = 64,
                           .in_features = 32,
                           .bits = 3,
                           .group_size = 32,
                           .bits_per_weight = 3.6,
                           .error_before = 0.02,
                           .error_after = 0.01});
  json object = report.json();
  object["output"] = "out/w3";
  return object;
}

json score_json() {
  return {{"perplexity", 30.5}, {"bits_per_weight", 3.6}, {"model", "out/w3"},
          {"dataset", "text"},  {"protocol", "gptq"},     {"data_hash", "ab"}};
}

/// The data that the page carries, as its code reads them.
json data_of(const std::string& page) {
  const std::string open = "<script id=\"data\" type=\"application/json\">";
  const size_t begin = page.find(open) + open.size();
  return parse_json(page.substr(begin, page.find("</script>", begin) - begin), "page");
}

size_t count_of(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

TEST(ReportPage, CarriesRunsAndScoresAsTheyCame) {
  json run = run_json();
  run["layers"][0]["a_field_of_tomorrow"] = 7;
  const json data = data_of(report_page({{run, "a"}, {score_json(), "b"}, {score_json(), "c"}}));
  EXPECT_EQ(data.at("runs"), json::array({run}));
  EXPECT_EQ(data.at("scores"), json::array({score_json(), score_json()}));
}

TEST(ReportPage, StringsCannotBecomeMarkup) {
  const std::string plain = report_page({{run_json(), "a"}});
  for (const char* text : {"</script><img src=x onerror=alert(1)>", "<!--<script>", "]]>",
                           "/*DATA*//*SCRIPT*/", "\"&'`${1}", "\xff\xfe not UTF-8"}) {
    json run = run_json();
    run["output"] = run["model"] = run["calibration"]["source"] = text;
    run["layers"][0]["name"] = text;
    const std::string page = report_page({{run, "a"}});
    // The parts that a browser acts on are those of any other page.
    for (const char* mark : {"<script", "</script", "<img", "<!--", "<style"})
      EXPECT_EQ(count_of(page, mark), count_of(plain, mark)) << mark << " in " << text;
    if (text[0] == '\xff') continue;
    EXPECT_EQ(data_of(page).at("runs").at(0).at("layers").at(0).at("name"), text);
  }
}

TEST(ReportPage, NeedsNothingBesideItself) {
  const std::string page = report_page({{run_json(), "a"}, {score_json(), "b"}});
  EXPECT_TRUE(page.starts_with("<!doctype html>"));
  EXPECT_NE(page.find("default-src 'none'"), std::string::npos);
  // The one address is the name of the SVG namespace, which nothing fetches.
  EXPECT_EQ(count_of(page, "http://www.w3.org/2000/svg"), 1u);
  EXPECT_EQ(count_of(page, "://"), 1u);
  for (const char* pattern :
       {"<link", "\\bsrc=", "\\bhref", "@import", "url\\(", "\\bfetch\\(", "XMLHttpRequest", "WebSocket",
        "\\bimport\\b", "innerHTML", "insertAdjacentHTML", "document\\.write", "\\beval\\b", "new Function"})
    EXPECT_FALSE(std::regex_search(page, std::regex(pattern))) << pattern;
  for (const char* mark : {"/*STYLE*/", "/*SCRIPT*/", "/*DATA*/"})
    EXPECT_EQ(page.find(mark), std::string::npos) << mark;
  EXPECT_NE(page.find("prefers-color-scheme: dark"), std::string::npos);
  EXPECT_NE(page.find("@media print"), std::string::npos);
}

TEST(ReportPage, RefusesOtherObjects) {
  const auto fails = [](const json& object, const char* part) {
    return throws_with(part, [&] { report_page({{object, "run.json"}}); });
  };
  EXPECT_TRUE(fails(json::array(), "run.json: expected an object"));
  EXPECT_TRUE(fails(json::object(), "run.json: expected what quantize --json or perplexity --json print"));
  json run = run_json();
  run["layers"][0].erase("error_after");
  EXPECT_TRUE(fails(run, "run.json: layers: item 0"));
  run = run_json();
  run["layers"] = "x";
  EXPECT_TRUE(fails(run, "layers"));
  json score = score_json();
  score["perplexity"] = "x";
  EXPECT_TRUE(fails(score, "perplexity"));
  score = score_json();
  score.erase("data_hash");
  EXPECT_TRUE(fails(score, "data_hash"));
}

}  // namespace
}  // namespace ballast
