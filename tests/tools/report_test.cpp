// `ballast report` and `ballast quantize --report` from outside.
#include "tests/tools/run_ballast.h"

namespace ballast {
namespace {

namespace fs = std::filesystem;

Outcome quantize(const fs::path& output, std::vector<std::string> more, const std::string& method = "rtn") {
  std::vector<std::string> arguments = {"quantize",
                                        "-m",
                                        kDemo,
                                        "-o",
                                        output.string(),
                                        "--bits",
                                        "3",
                                        "--method",
                                        method,
                                        "--samples",
                                        "8",
                                        "--length",
                                        "128",
                                        "--calibration",
                                        std::string(kDemo) + "/sample.txt",
                                        "--quiet"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return ballast(arguments);
}

TEST(ReportCommand, QuantizeWritesAPage) {
  const TempFolder folder;
  const std::string page = (folder / "page.html").string();
  folder.write("page.html", "an older page");
  const Outcome run = quantize(folder / "out", {"--recipe", "fast", "--report", page, "--json"}, "gptq");
  ASSERT_EQ(run.code, 0) << run.err;
  const std::string html = folder.read("page.html");
  EXPECT_TRUE(html.starts_with("<!doctype html>"));
  EXPECT_NE(html.find("\"model.decoder.layers.3.fc2\""), html.npos);
  EXPECT_NE(html.find("\"recipe\":\"fast\""), html.npos);
  EXPECT_EQ(run.json().at("recipe"), "fast");
  EXPECT_EQ(run.json().at("widths_seconds"), 0);
  EXPECT_GT(run.json().at("source_bytes"), run.json().at("output_bytes"));
  EXPECT_FALSE(fs::exists(page + ".writing"));
  EXPECT_TRUE(
      refused(quantize(folder / "b", {"--report", (folder / "no/page.html").string()}), "is not there"));
  EXPECT_TRUE(refused(quantize(folder / "b", {"--report", folder.path().string()}), "is a folder"));
  EXPECT_FALSE(fs::exists(folder / "b" / "config.json"));
}

TEST(ReportCommand, OutliersAreCounted) {
  const TempFolder folder;
  const Outcome run = quantize(folder / "out", {"--json"}, "spqr");
  ASSERT_EQ(run.code, 0) << run.err;
  const auto report = run.json();
  double most = 0;
  for (const auto& layer : report.at("layers")) {
    const double share = layer.at("outlier_share");
    // An outlier takes 16 bits and its column's 16 (SpQR, §4.2), beside the code that it replaces.
    EXPECT_LE(3 + 32 * share, layer.at("bits_per_weight")) << layer.at("name");
    most = std::max(most, share);
  }
  EXPECT_GT(most, 0);
  EXPECT_LT(most, 0.1);
}

TEST(ReportCommand, ComparesRunsAndTheirPerplexity) {
  const TempFolder folder;
  const Outcome run = quantize(folder / "out", {"--json"});
  ASSERT_EQ(run.code, 0) << run.err;
  const auto score = [&](const std::string& model) {
    return ballast({"perplexity", "-m", model, "--text", std::string(kDemo) + "/sample.txt", "--ctx", "64",
                    "--chunks", "1", "--json", "--quiet"});
  };
  const Outcome quantized = score((folder / "out").string()), original = score(kDemo);
  ASSERT_EQ(quantized.code, 0) << quantized.err;
  EXPECT_EQ(quantized.json().at("quantization").at("method"), "rtn");
  EXPECT_EQ(quantized.json().at("quantization").at("recipe"), "");
  EXPECT_EQ(quantized.json().at("quantization").at("compensation"), "channel");
  EXPECT_EQ(quantized.json().at("bits_per_weight"), run.json().at("bits_per_weight"));
  EXPECT_EQ(quantized.json().at("model"), run.json().at("output"));
  EXPECT_EQ(original.json().at("quantization").at("method"), "float");
  EXPECT_EQ(original.json().at("bits_per_weight"), 16);
  folder.write("a.json", run.out);
  folder.write("b.json", quantized.out);
  folder.write("c.json", original.out);
  const auto path = [&](const char* name) { return (folder / name).string(); };
  const Outcome report =
      ballast({"report", "-o", path("page.html"), path("a.json"), path("b.json"), path("c.json")});
  ASSERT_EQ(report.code, 0) << report.err;
  EXPECT_EQ(report.out, path("page.html") + ": 1 quantized, 2 measured\n");
  EXPECT_NE(folder.read("page.html").find("\"scores\":[{"), std::string::npos);
  EXPECT_TRUE(refused(ballast({"report", "-o", path("p"), path("nothing.json")}), "nothing.json"));
  folder.write("d.json", "[1]");
  EXPECT_TRUE(refused(ballast({"report", "-o", path("p"), path("d.json")}), "d.json: expected an object"));
  EXPECT_TRUE(refused(ballast({"report", path("a.json")}), "--output"));
  EXPECT_FALSE(fs::exists(path("p")));
}

}  // namespace
}  // namespace ballast
