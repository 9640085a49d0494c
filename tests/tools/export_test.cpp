// `ballast export` from outside.
#include <fstream>

#include "engine/io/packed.h"
#include "tests/engine/io/packed_support.h"
#include "tests/tools/run_ballast.h"

namespace ballast {
namespace {

namespace fs = std::filesystem;

// The bundled model, quantized quickly.
std::string quantized(const TempFolder& folder, const std::string& name, std::vector<std::string> flags) {
  std::vector<std::string> arguments = {"quantize", "-m",        kDemo, "-o",       "",   "--method",
                                        "rtn",      "--samples", "2",   "--length", "64", "--calibration"};
  arguments.push_back(std::string(kDemo) + "/sample.txt");
  arguments[4] = (folder / name).string();
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  const Outcome run = ballast(arguments);
  EXPECT_EQ(run.code, 0) << run.err;
  return arguments[4];
}

Outcome exported(const std::string& from, const fs::path& to, const std::string& layout,
                 std::vector<std::string> flags = {}) {
  std::vector<std::string> arguments = {"export", "-m", from, "-o", to.string(), "--layout", layout};
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  return ballast(arguments);
}

std::map<std::string, std::string> files_of(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& file : fs::directory_iterator(folder)) {
    std::ifstream in(file.path(), std::ios::binary);
    files[file.path().filename().string()] = std::string(std::istreambuf_iterator<char>(in), {});
  }
  return files;
}

json window_nll(const fs::path& folder) {
  const Outcome run =
      ballast({"perplexity", "-m", folder.string(), "--text", std::string(kDemo) + "/sample.txt", "--ctx",
               "128", "--chunks", "2", "--json"});
  EXPECT_EQ(run.code, 0) << run.err;
  return run.json().at("window_nll");
}

TEST(ExportCommand, ThereAndBackGivesTheSameBytes) {
  const TempFolder folder;
  const struct {
    std::vector<std::string> flags;
    const char* own_layout;
  } cases[] = {
      {{"--bits", "3", "--group-size", "128"}, "gptq_v2"},
      {{"--bits", "2", "--group-size", "64", "--override", "fc1=4:32", "--skip", "fc2"}, "gptq_v2"},
      {{"--bits", "4", "--symmetric"}, "gptq"},
  };
  for (size_t i = 0; i < std::size(cases); ++i) {
    const std::string own = quantized(folder, str("own", i), cases[i].flags);
    const fs::path other = folder / str("other", i), back = folder / str("back", i);
    Outcome run = exported(own, other, "compressed-tensors");
    ASSERT_EQ(run.code, 0) << run.err;
    run = exported(other.string(), back, cases[i].own_layout, {"--json"});
    ASSERT_EQ(run.code, 0) << run.err;
    EXPECT_EQ(run.json().at("modules"), i == 1 ? 20 : 24);
    EXPECT_EQ(files_of(own), files_of(back)) << i;
    EXPECT_FALSE(fs::exists(other / "quantize_config.json"));
    // Codes, scales and biases are the same numbers, so the model's outputs are the same bits.
    EXPECT_EQ(window_nll(own), window_nll(other)) << i;
  }
}

// They have no published layout: with codes a bit wider the same weights have one.
TEST(ExportCommand, HalfZeroPointsBecomeWholeOnesOfTheSameWeights) {
  const TempFolder folder;
  const struct {
    std::vector<std::string> flags;
    int bits;
  } cases[] = {{{"--bits", "2", "--group-size", "64"}, 3},
               {{"--bits", "3", "--override", "fc1=4:32", "--skip", "fc2"}, 4},
               {{"--bits", "4"}, 8},
               {{"--bits", "3", "--symmetric"}, 4}};
  for (size_t i = 0; i < std::size(cases); ++i) {
    std::vector<std::string> flags = cases[i].flags;
    flags.insert(flags.end(), {"--zero-points", "half"});
    const std::string own = quantized(folder, str("own", i), flags);
    const json config = json::parse(files_of(own).at("config.json")).at("quantization_config");
    EXPECT_EQ(config.at("encodings"), json::array({kHalfZeros}));
    for (const char* layout : {"gptq_v2", "compressed-tensors"}) {
      const fs::path other = folder / str(layout, i);
      const Outcome run = exported(own, other, layout, {"--json"});
      ASSERT_EQ(run.code, 0) << run.err;
      EXPECT_EQ(run.json().at("modules"), i == 1 ? 20 : 24);
      EXPECT_EQ(run.json().at("bits"), cases[i].bits);
      // Readers must not take quantized modules for float ones.
      const json theirs = json::parse(files_of(other).at("config.json")).at("quantization_config");
      const std::string floats = theirs.value("ignore", json::array()).dump();
      EXPECT_EQ(floats.find("fc1"), std::string::npos) << floats;
      EXPECT_FALSE(
          theirs.value("dynamic", json::object()).contains("-:^model\\.decoder\\.layers\\.0\\.fc1$"));
      EXPECT_EQ(window_nll(own), window_nll(other)) << layout << i;
      const double before = config.at("meta").at("bits_per_weight"),
                   after = theirs.at("meta").at("bits_per_weight");
      EXPECT_GT(after, before + 0.9);
    }
  }
}

// Where few modules had half zero points the width of the others is the usual one.
TEST(ExportCommand, TheCommonestWidthIsTheUsualOne) {
  const TempFolder folder;
  for (const int bits : {8, 6, 3}) {
    const std::string own = (folder / str("own", bits)).string();
    Outcome run = ballast({"quantize", "-m", kDemo, "-o", own, "--recipe", "fast", "--bits",
                           std::to_string(bits), "--override", "fc1=2", "--samples", "2", "--length", "64",
                           "--calibration", std::string(kDemo) + "/sample.txt"});
    ASSERT_EQ(run.code, 0) << run.err;
    for (const char* layout : {"gptq_v2", "compressed-tensors"}) {
      const fs::path other = folder / str(layout, bits);
      run = exported(own, other, layout, {"--json"});
      ASSERT_EQ(run.code, 0) << run.err;
      EXPECT_EQ(run.json().at("bits"), bits == 3 ? 3 : 8);
      EXPECT_EQ(window_nll(own), window_nll(other)) << layout << bits;
    }
  }
}

TEST(ExportCommand, BiasesWithTheirCompensationAreCopied) {
  const TempFolder folder;
  const std::string own = quantized(folder, "own", {"--bits", "3"});
  ASSERT_EQ(exported(own, folder / "out", "compressed-tensors").code, 0);
  const Checkpoint before = Checkpoint::open(own), after = Checkpoint::open(folder / "out"),
                   original = Checkpoint::open(kDemo);
  int64_t biases = 0, changed = 0;
  for (const StoredTensor& tensor : before.tensors()) {
    if (!tensor.name.ends_with(".bias")) continue;
    const StoredTensor& copy = after.require(tensor.name);
    ASSERT_EQ(copy.bytes, tensor.bytes);
    EXPECT_EQ(std::memcmp(after.bytes(copy), before.bytes(tensor), tensor.bytes), 0) << tensor.name;
    changed +=
        std::memcmp(original.bytes(original.require(tensor.name)), before.bytes(tensor), tensor.bytes) != 0;
    ++biases;
  }
  EXPECT_GT(biases, 24);
  EXPECT_EQ(changed, 24);
}

TEST(ExportCommand, OtherReadersFindTheFloatModulesNamed) {
  const TempFolder folder;
  const std::string own = quantized(folder, "own", {"--bits", "4", "--symmetric", "--skip", "layers.0.fc1"});
  ASSERT_EQ(exported(own, folder / "out", "compressed-tensors").code, 0);
  const json config = json::parse(files_of(folder / "out").at("config.json")).at("quantization_config");
  EXPECT_EQ(config.at("ignore"), json::array({"lm_head", "model.decoder.layers.0.fc1"}));
  EXPECT_EQ(config.at("meta").at("quantizer"), "ballast");
  const json gptq = json::parse(files_of(own).at("config.json")).at("quantization_config");
  EXPECT_EQ(gptq.at("dynamic"), (json{{"-:^model\\.decoder\\.layers\\.0\\.fc1$", json::object()}}));
  EXPECT_FALSE(Checkpoint::open(folder / "out").find("model.decoder.layers.1.fc1.weight_zero_point"));
}

TEST(ExportCommand, CompensationWithoutABiasIsDroppedOnlyOnRequest) {
  const TempFolder folder;
  const std::string own = quantized(folder, "own", {"--bits", "3", "--compensate", "position"});
  EXPECT_TRUE(refused(exported(own, folder / "out", "compressed-tensors"), "--drop-compensation"));
  EXPECT_FALSE(fs::exists(folder / "out"));
  const Outcome run = exported(own, folder / "out", "compressed-tensors", {"--drop-compensation", "--json"});
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(run.json().at("dropped_tensors"), 24);
  EXPECT_NE(run.err.find("less accurate"), std::string::npos) << run.err;
  EXPECT_NE(window_nll(own), window_nll(folder / "out"));
}

TEST(ExportCommand, RefusesWhatItCannotDo) {
  const TempFolder folder;
  const fs::path out = folder / "out";
  EXPECT_TRUE(refused(exported(kDemo, out, "gptq"), "is not quantized"));
  EXPECT_TRUE(refused(exported(kDemo, out, "awq"), "expected gptq, gptq_v2 or compressed-tensors"));
  const std::string head = quantized(folder, "head", {"--bits", "4", "--head-bits", "4"});
  EXPECT_TRUE(refused(exported(head, out, "gptq_v2", {"--drop-compensation"}), "embed_tokens is quantized"));
  EXPECT_TRUE(refused(exported(head, head, "gptq_v2"), "expected another folder"));
  const std::string own = quantized(folder, "own", {"--bits", "4"});
  EXPECT_TRUE(refused(exported(own, head, "compressed-tensors"), "already holds config.json"));
  EXPECT_EQ(exported(own, head, "compressed-tensors", {"--force"}).code, 0);
}

/// Writes module "m" to `folder`/in and exports it.
Outcome export_module(const TempFolder& folder, const Module& module, const std::string& layout) {
  fs::remove_all(folder / "in");
  CheckpointWriter writer(folder / "in", {});
  for (const auto& [name, tensor] : module.tensors)
    writer.add(name, tensor.dtype, tensor.shape, tensor.data.data());
  writer.finish(module.config);
  return exported((folder / "in").string(), folder / "out", layout, {"--force"});
}

TEST(ExportCommand, RefusesHalfZeroPointsWithoutTheZeros) {
  const TempFolder folder;
  AffineMatrix matrix = random_matrix(2, 32, 64, 16, false);
  matrix.half_zeros = true;
  Module module(matrix);
  for (const auto& [name, tensor] : std::map(module.tensors)) module.tensors["n" + name.substr(1)] = tensor;
  const Outcome whole = export_module(folder, module, "gptq_v2");
  EXPECT_EQ(whole.code, 0) << whole.err;
  module.tensors.erase("m.weight_half_zeros");
  EXPECT_TRUE(refused(export_module(folder, module, "gptq_v2"), "m.weight_half_zeros\" is missing"));
}

TEST(ExportCommand, RefusesWhatALayoutCannotHold) {
  const TempFolder folder;
  // random_matrix puts a zero point of 0 first.
  const Module zero(PackedLayout::gptq_v2, random_matrix(4, 32, 64, 16, false), false);
  EXPECT_TRUE(refused(export_module(folder, zero, "gptq"), "zero point of 0"));
  EXPECT_EQ(export_module(folder, zero, "compressed-tensors").code, 0);
  const Module odd(PackedLayout::pack_quantized, random_matrix(3, 50, 96, 32, false), false);
  EXPECT_TRUE(refused(export_module(folder, odd, "gptq_v2"), "cannot hold 50 x 96 weights of 3 bits"));
  Module extra = zero;
  extra.set<float>("outliers", "F32", {1}, {1.0f});
  EXPECT_TRUE(refused(export_module(folder, extra, "compressed-tensors"), "m.outliers"));
  Module lying = zero;
  lying.quantization()["sym"] = true;
  EXPECT_TRUE(refused(export_module(folder, lying, "compressed-tensors"), "says symmetric"));
  EXPECT_FALSE(fs::exists(folder / "out" / ".ballast-writing"));
}

TEST(ExportCommand, ShapesComeFromTheTensors) {
  const TempFolder folder;
  const AffineMatrix matrix = random_matrix(3, 64, 96, 32, false);
  Module module(PackedLayout::gptq_v2, matrix, false);
  module.tensors.erase("m.g_idx");
  ASSERT_EQ(export_module(folder, module, "compressed-tensors").code, 0);
  expect_equal(read_packed(Checkpoint::open(folder / "out"), "m", 64, 96), matrix);
  module.quantization()["dynamic"] = {{"+:x", {{"bits", 4}}}};
  EXPECT_TRUE(refused(export_module(folder, module, "compressed-tensors"), "m.g_idx\": is missing"));
  Module huge(PackedLayout::pack_quantized, matrix, false);
  huge.poke<int64_t>("weight_shape", 1, INT64_MAX);
  EXPECT_TRUE(refused(export_module(folder, huge, "gptq_v2"), "expected 1 to"));
}

}  // namespace
}  // namespace ballast
