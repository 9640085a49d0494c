// classify, evaluate and quantize on image classifiers.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <sstream>

#include "tests/tools/run_ballast.h"

namespace ballast {
namespace {

namespace fs = std::filesystem;
const fs::path kTests = fs::path(BALLAST_SOURCE_DIR) / "tests/golden";

// A tiny model, and a list of five images of which one is damaged.
class Vision : public testing::Test {
 protected:
  void SetUp() override {
    fs::create_directory(folder_ / "model");
    for (const char* name : {"config.json", "model.safetensors"})
      fs::copy_file(kTests / "vit/vit" / name, folder_ / "model" / name);
    folder_.write("model/preprocessor_config.json",
                  R"({"image_processor_type": "ViTImageProcessor", "size": 20})");
    for (const char* name : {"photo.jpg", "grey.png", "cmyk.jpg", "palette.png"})
      fs::copy_file(kTests / "image" / name, folder_ / name);
    folder_.write("broken.jpg", "\xFF\xD8\xFF\xE0");
    folder_.write("good.txt", "photo.jpg 0\ngrey.png, 6\ncmyk.jpg 2\npalette.png 3\n");
    folder_.write("list.txt", "photo.jpg 0\nbroken.jpg 1\ngrey.png, 6\ncmyk.jpg 2\npalette.png 3\n");
  }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  TempFolder folder_;
};

TEST_F(Vision, ClassifyGoesOnAfterABadImage) {
  const Outcome run = ballast({"classify", "-m", path("model"), "--top", "2", "--json", path("photo.jpg"),
                               path("broken.jpg"), path("grey.png")});
  EXPECT_EQ(run.code, 2);
  EXPECT_NE(run.err.find("broken.jpg: is a damaged or unsupported JPEG"), run.err.npos) << run.err;
  const auto images = run.json().at("images");
  ASSERT_EQ(images.size(), 3u);
  EXPECT_EQ(images[0]["predictions"].size(), 2u);
  EXPECT_GE(images[0]["predictions"][0]["probability"], images[0]["predictions"][1]["probability"]);
  EXPECT_TRUE(images[0]["predictions"][0]["label"].get<std::string>().starts_with("LABEL_"));
  EXPECT_TRUE(images[1].contains("error"));
  EXPECT_TRUE(images[2].contains("predictions"));
}

TEST_F(Vision, ClassifyNamesClassesFromAFile) {
  folder_.write("names.txt", "a\nb\nc\nd\ne\nf\ng\n");
  const Outcome run = ballast(
      {"classify", "-m", path("model"), "--labels", path("names.txt"), "--top", "7", path("photo.jpg")});
  EXPECT_EQ(run.code, 0) << run.err;
  EXPECT_NE(run.out.find("  g\n"), run.out.npos) << run.out;
  folder_.write("names.txt", "a\nb\n");
  EXPECT_TRUE(
      refused(ballast({"classify", "-m", path("model"), "--labels", path("names.txt"), path("photo.jpg")}),
              "names.txt: has 2 lines"));
}

TEST_F(Vision, EvaluateCountsWhatItCouldRead) {
  const Outcome run = ballast({"evaluate", "-m", path("model"), "--images", path("list.txt"), "--predictions",
                               path("predictions.tsv"), "--json"});
  EXPECT_EQ(run.code, 2);
  EXPECT_NE(run.err.find("broken.jpg"), run.err.npos);
  const auto json = run.json();
  EXPECT_EQ(json["images"], 4);
  EXPECT_EQ(json["failed"], 1);
  for (const char* key : {"top1", "top5", "nll", "images_per_second"})
    EXPECT_TRUE(json[key].is_number()) << key;
  std::istringstream lines(folder_.read("predictions.tsv"));
  std::string line;
  int64_t rows = 0;
  while (std::getline(lines, line)) {
    if (line.starts_with("#")) continue;
    ++rows;
    EXPECT_EQ(std::count(line.begin(), line.end(), '\t'), 5) << line;
  }
  EXPECT_EQ(rows, 4);
}

TEST_F(Vision, EvaluateHasNoFiguresWithoutAnImage) {
  folder_.write("none.txt", "broken.jpg 1\nmissing.jpg 2\n");
  for (const char* form : {"--json", "--quiet"}) {
    const Outcome run = ballast({"evaluate", "-m", path("model"), "--images", path("none.txt"), form});
    EXPECT_EQ(run.code, 2);
    EXPECT_EQ(run.out, "");
    EXPECT_NE(run.err.find("2 of 2 images could not be read"), run.err.npos) << run.err;
  }
}

TEST_F(Vision, ThreadsDoNotChangeResults) {
  std::string first;
  for (const char* threads : {"1", "3"}) {
    const Outcome run = ballast({"evaluate", "--threads", threads, "-m", path("model"), "--images",
                                 path("good.txt"), "--predictions", path("predictions.tsv"), "--json"});
    EXPECT_EQ(run.code, 0) << run.err;
    const std::string rows = folder_.read("predictions.tsv") + run.json()["nll"].dump();
    if (first.empty()) first = rows;
    EXPECT_EQ(rows, first);
  }
}

TEST_F(Vision, RefusesTextModelsAndModelsWithoutPreparation) {
  EXPECT_TRUE(refused(ballast({"classify", "-m", kDemo, path("photo.jpg")}), "expected an image classifier"));
  for (const std::vector<std::string>& wants_text : std::vector<std::vector<std::string>>{
           {"generate", "-m", path("model"), "-p", "a"},
           {"perplexity", "-m", path("model"), "--text", path("list.txt")},
           {"bench", "-m", path("model"), "--prompt", "4", "--generate", "1"}})
    EXPECT_TRUE(refused(ballast(wants_text), "takes images and no text"));
  fs::remove(folder_ / "model/preprocessor_config.json");
  EXPECT_TRUE(
      refused(ballast({"classify", "-m", path("model"), path("photo.jpg")}), "preprocessor_config.json"));
  folder_.write("model/preprocessor_config.json", R"({"size": 30})");
  EXPECT_TRUE(
      refused(ballast({"classify", "-m", path("model"), path("photo.jpg")}), "the model reads 20 x 20"));
}

TEST_F(Vision, QuantizedFoldersAreReadBack) {
  const std::vector<std::vector<std::string>> runs = {
      {"--bits", "4", "--method", "rtn"},
      {"--bits", "3", "--recipe", "best"},
      {"--bits", "2", "--method", "comq"},
      {"--bits", "3", "--method", "spqr", "--group-size", "12", "--skip", "output.dense"},
      {"--method", "billm"},
      {"--bits", "8", "--head-bits", "8", "--compensate", "position"},
      {"--bits", "4", "--curvature", "output-adaptive"},
      {"--bits", "4", "--curvature", "guided"},
      {"--target-bits", "6"},
      {"--bits", "8", "--activation-bits", "8"},
      {"--bits", "6", "--activation-bits", "6", "--method", "comq", "--no-fold-ranges"},
      {"--bits", "4", "--activation-bits", "4", "--recipe", "best"},
      {"--bits", "4", "--activation-bits", "4", "--method", "rtn", "--no-logarithms", "--skip",
       "output.dense"}};
  for (const auto& flags : runs) {
    std::vector<std::string> arguments{
        "quantize",       "-m",      path("model"), "-o",    path("out"), "--calibration",
        path("good.txt"), "--force", "--quiet",     "--json"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    const Outcome run = ballast(arguments);
    ASSERT_EQ(run.code, 0) << flags[0] << " " << flags[1] << ": " << run.err;
    const bool recipe = std::find(flags.begin(), flags.end(), "--method") == flags.end();
    const bool best = std::find(flags.begin(), flags.end(), "best") != flags.end();
    const auto calibration = run.json()["calibration"];
    EXPECT_EQ(calibration["samples"], 4);
    EXPECT_EQ(calibration["views"], best ? 4 : recipe ? 2 : 1);
    const Outcome measured = ballast({"evaluate", "-m", path("out"), "--images", path("good.txt"), "--json"});
    EXPECT_EQ(measured.code, 0) << measured.err;
    EXPECT_TRUE(std::isfinite(measured.json()["nll"].get<double>()));
    EXPECT_EQ(ballast({"inspect", path("out")}).code, 0);
  }
}

TEST_F(Vision, ViewsAreMoreSamplesOfTheSameImages) {
  const auto nll = [&](const std::vector<std::string>& more) {
    std::vector<std::string> arguments{
        "quantize",       "-m",      path("model"), "-o",     path("out"), "--calibration",
        path("good.txt"), "--force", "--quiet",     "--json", "--bits",    "3"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome run = ballast(arguments);
    EXPECT_EQ(run.code, 0) << run.err;
    EXPECT_EQ(run.json()["calibration"]["samples"], 4);
    EXPECT_EQ(run.json()["calibration"]["views"], more.empty() ? 2 : 3);
    return ballast({"evaluate", "-m", path("out"), "--images", path("good.txt"), "--json"})
        .json()["nll"]
        .get<double>();
  };
  const double three = nll({"--views", "3"});
  EXPECT_NE(three, nll({}));
  EXPECT_NE(three, nll({"--views", "3", "--seed", "1"}));
  EXPECT_EQ(three, nll({"--views", "3"}));
}

// What the answer is read from gains: its own token's error falls.
TEST_F(Vision, ClassWeightBringsTheAnswersNearer) {
  const auto logits = [&](const std::string& model) {
    std::vector<double> probabilities;
    const Outcome run = ballast({"classify", "-m", path(model), "--top", "7", "--json", path("photo.jpg"),
                                 path("grey.png"), path("cmyk.jpg"), path("palette.png")});
    const nlohmann::json images = run.json().at("images");
    for (const auto& image : images) {
      std::map<int, double> by_class;
      for (const auto& guess : image["predictions"])
        by_class[guess["class"]] = std::log(guess["probability"].get<double>());
      for (const auto& [index, value] : by_class) probabilities.push_back(value);
    }
    return probabilities;
  };
  const std::vector<double> exact = logits("model");
  const auto distance = [&](const char* weight) {
    EXPECT_EQ(ballast({"quantize", "-m", path("model"), "-o", path("out"), "--bits", "3", "--calibration",
                       path("good.txt"), "--views", "8", "--class-weight", weight, "--force", "--quiet"})
                  .code,
              0);
    const std::vector<double> got = logits("out");
    double squares = 0;
    for (size_t i = 0; i < exact.size(); ++i) squares += (got[i] - exact[i]) * (got[i] - exact[i]);
    return squares;
  };
  EXPECT_LT(distance("30"), distance("1"));
}

TEST_F(Vision, QuantizeRefusesWhatMakesNoSense) {
  const auto quantize = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"quantize", "-m", path("model"), "-o", path("out"), "--bits", "4"});
    return ballast(more);
  };
  EXPECT_TRUE(refused(quantize({}), "--calibration is missing"));
  EXPECT_TRUE(refused(quantize({"--calibration", path("good.txt"), "--samples", "9"}), "lists 4 images"));
  EXPECT_TRUE(
      refused(quantize({"--calibration", path("good.txt"), "--length", "64"}), "--length is for text"));
  EXPECT_TRUE(refused(quantize({"--calibration", path("good.txt"), "--views", "0"}), "--views is 0"));
  EXPECT_TRUE(refused(quantize({"--calibration", path("list.txt")}), "broken.jpg"));
}

// Sites are told apart by how they run; all instruction sets give the same answers; another run gives the same folder.
TEST_F(Vision, QuantizedActivationsAreShownAndReproducible) {
  const auto quantize = [&](const std::string& out) {
    return ballast({"quantize", "-m", path("model"), "-o", path(out), "--calibration", path("good.txt"),
                    "--quiet", "--bits", "8", "--activation-bits", "8"});
  };
  ASSERT_EQ(quantize("out").code, 0);
  ASSERT_EQ(quantize("again").code, 0);
  EXPECT_EQ(folder_.read("out/model.safetensors"), folder_.read("again/model.safetensors"));
  EXPECT_EQ(folder_.read("out/config.json"), folder_.read("again/config.json"));
  const auto shown = ballast({"inspect", path("out"), "--json"}).json();
  std::map<std::string, int64_t> widths;
  for (const auto& layer : shown.at("linears"))
    widths[layer.at("name").get<std::string>() + ".input"] = layer.at("in_features");
  int64_t integers = 0, decoded = 0;
  for (const auto& site : shown.at("activation_sites")) {
    const std::string name = site["name"], execution = site["execution"];
    // Integer products take four columns at a time.
    EXPECT_EQ(execution, widths.contains(name) && widths[name] % 4 == 0 ? "integers" : "decoded") << name;
    EXPECT_EQ(site["bits"], 8);
    ++(execution == "integers" ? integers : decoded);
  }
  EXPECT_GT(integers, 0);
  EXPECT_GT(decoded, 0);
  EXPECT_TRUE(refused(ballast({"export", "-m", path("out"), "-o", path("other"), "--layout", "gptq_v2"}),
                      "rounds activations at"));
  std::string first;
  for (const char* isa : {"scalar", "auto"}) {
    const Outcome run = ballast({"evaluate", "-m", path("out"), "--images", path("good.txt"), "--predictions",
                                 path("predictions.tsv"), "--isa", isa});
    EXPECT_EQ(run.code, 0) << run.err;
    if (first.empty()) first = folder_.read("predictions.tsv");
    EXPECT_EQ(folder_.read("predictions.tsv"), first);
  }
}

TEST_F(Vision, ActivationsAreRefusedWhereTheyMakeNoSense) {
  const auto quantize = [&](const std::string& model, std::vector<std::string> more) {
    more.insert(more.begin(), {"quantize", "-m", model, "-o", path("out"), "--bits", "4"});
    return ballast(more);
  };
  EXPECT_TRUE(
      refused(quantize(kDemo, {"--activation-bits", "8"}), "--activation-bits is for image classifiers"));
  EXPECT_TRUE(refused(quantize(path("model"), {"--activation-bits", "5"}), "expected 4, 6 or 8"));
  EXPECT_TRUE(refused(
      quantize(path("model"), {"--activation-bits", "8", "--one-pass", "--calibration", path("good.txt")}),
      "--one-pass makes no sense with --activation-bits"));
}

// A model for which real accuracy counts. Minutes.
TEST(VisionReference, SlowDeitTinyWithQuantizedActivations) {
  const fs::path data = fs::path(BALLAST_SOURCE_DIR).parent_path() / "shared/data";
  const fs::path model = data / "deit-tiny-patch16-224", list = data / "imagenet-val-1300/dataset.txt",
                 training = data / "imagenet-train-sample-100/labels.txt";
  if (!fs::exists(model) || !fs::exists(list) || !fs::exists(training))
    GTEST_SKIP() << "no trained model beside the checkout";
  const TempFolder folder;
  for (const auto& [bits, least] : {std::pair{"8", 78.0}, std::pair{"4", 68.0}}) {
    const std::string out = (folder / (std::string("w") + bits)).string();
    const Outcome run =
        ballast({"quantize", "-m", model.string(), "-o", out, "--calibration", training.string(), "--quiet",
                 "--json", "--bits", bits, "--activation-bits", bits, "--views", "1"});
    ASSERT_EQ(run.code, 0) << run.err;
    const double share = run.json()["output_bytes"].get<double>() / run.json()["source_bytes"].get<double>();
    EXPECT_LT(share, bits[0] == '4' ? 0.2 : 0.3) << bits;
    const Outcome measured =
        ballast({"evaluate", "-m", out, "--images", list.string(), "--limit", "650", "--json"});
    ASSERT_EQ(measured.code, 0) << measured.err;
    EXPECT_GT(measured.json()["top1"].get<double>(), least) << bits;
  }
}

// The trained model against what transformers computed for the same files. A minute or two.
TEST(VisionReference, SlowDeitTinyOnValidationImages) {
  const fs::path data = fs::path(BALLAST_SOURCE_DIR).parent_path() / "shared/data";
  const fs::path model = data / "deit-tiny-patch16-224", list = data / "imagenet-val-1300/dataset.txt";
  if (!fs::exists(model) || !fs::exists(list)) GTEST_SKIP() << "no trained model beside the checkout";
  const TempFolder folder;
  const Outcome run = ballast({"evaluate", "-m", model.string(), "--images", list.string(), "--predictions",
                               (folder / "predictions.tsv").string(), "--json"});
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_NEAR(run.json()["top1"].get<double>(), 81.62, 0.1);
  EXPECT_NEAR(run.json()["nll"].get<double>(), 0.8669, 1e-3);
  std::ifstream expected_file(model / "reference_fp32_imagenet-val-1300.tsv");
  std::istringstream got_file(folder.read("predictions.tsv"));
  std::string expected_line, got_line;
  int64_t rows = 0;
  while (std::getline(expected_file, expected_line) && std::getline(got_file, got_line)) {
    if (expected_line.starts_with("#")) continue;
    std::string path, got_path;
    int64_t label, first, second, got_label, got_first, got_second;
    double logit, runner_up, got_logit, got_runner_up;
    std::istringstream(expected_line) >> path >> label >> first >> logit >> second >> runner_up;
    std::istringstream(got_line) >> got_path >> got_label >> got_first >> got_logit >> got_second >>
        got_runner_up;
    ASSERT_EQ(path, got_path);
    if (logit - runner_up > 0.05) {
      EXPECT_EQ(first, got_first) << path;
    }
    EXPECT_NEAR(logit, got_logit, 0.05) << path;
    EXPECT_NEAR(runner_up, got_runner_up, 0.05) << path;
    ++rows;
  }
  EXPECT_EQ(rows, 1300);
}

}  // namespace
}  // namespace ballast
