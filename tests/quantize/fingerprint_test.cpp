#include "quantize/fingerprint.h"

#include <gtest/gtest.h>

#include "quantize/output.h"
#include "tests/support/temp_folder.h"

namespace ballast {
namespace {

using Lines = std::vector<std::string>;

RunFingerprint of(const Recipe& recipe) {
  RunFingerprint fingerprint;
  add_recipe(fingerprint, recipe);
  return fingerprint;
}

TEST(Fingerprint, NamesTheOptionThatChanged) {
  const auto change = [](auto&& set) {
    Recipe recipe;
    set(recipe);
    return differences(of(Recipe()), of(recipe));
  };
  EXPECT_EQ(change([](Recipe&) {}), Lines());
  EXPECT_EQ(change([](Recipe& r) { r.method = "rtn"; }), Lines{"--method gptq -> rtn"});
  EXPECT_EQ(change([](Recipe& r) { r.grid.bits = 3; }), Lines{"--bits 4 -> 3"});
  EXPECT_EQ(change([](Recipe& r) { r.grid.group_size = 128; }), Lines{"--group-size 0 -> 128"});
  EXPECT_EQ(change([](Recipe& r) { r.grid.symmetric = true; }), Lines{"--symmetric off -> on"});
  EXPECT_EQ(change([](Recipe& r) { r.damping = 0.1 + 0.2; }), Lines{"--damping 0.01 -> 0.30000000000000004"});
  EXPECT_EQ(change([](Recipe& r) { r.compensation = Compensation::none; }),
            Lines{"--compensate joint -> none"});
  EXPECT_EQ(change([](Recipe& r) {
              r.overrides.push_back({.pattern = "fc", .regex = std::regex("fc"), .bits = 2});
            }),
            Lines{"--override and --skip none -> fc=2:-1"});
  EXPECT_EQ(change([](Recipe& r) { r.grid.bits = 3, r.act_order = true; }).size(), 2u);
}

TEST(Fingerprint, NamesTheFileThatChanged) {
  const std::filesystem::path plain = BALLAST_SOURCE_DIR "/tests/golden/opt/plain";
  const TempFolder folder;
  for (const char* file : {"config.json", "model.safetensors"})
    std::filesystem::copy(plain / file, folder / file);
  const auto take = [&] {
    RunFingerprint fingerprint;
    add_model(fingerprint, Checkpoint::open(folder.path()));
    return fingerprint;
  };
  const RunFingerprint before = take();
  EXPECT_EQ(differences(before, take()), Lines());
  std::string bytes = folder.read("model.safetensors");
  bytes.back() = char(bytes.back() ^ 1);
  folder.write("model.safetensors", bytes);
  EXPECT_EQ(differences(before, take()), Lines{"model.safetensors changed"});
  const RunFingerprint middle = take();
  for (const char* file : kSideFiles) {
    folder.write(file, "{}");
    EXPECT_EQ(differences(middle, take()), Lines{std::string(file) + " is new"});
    EXPECT_EQ(differences(take(), middle), Lines{std::string(file) + " is gone"});
    std::filesystem::remove(folder / file);
  }
}

}  // namespace
}  // namespace ballast
