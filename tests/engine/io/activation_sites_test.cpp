// Activation sites written and read back, and refused where the two places contradict each other.
#include "engine/io/activation_sites.h"

#include <gtest/gtest.h>

#include <bit>

#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"

namespace ballast {
namespace {

using nlohmann::json;
using Kind = ActivationGrid::Kind;

const ActivationSites kSites = {
    {"vit.layer.0.fc1.input", {.bits = 8, .step = 0.1f, .zero_point = 200}},
    {"vit.layer.0.fc2.input", {.kind = Kind::twin_sign, .bits = 4, .step = 0.0212345f, .shift = 5}},
    {"vit.layer.0.query.output", {.bits = 6, .step = 1e-4f, .zero_point = 31}},
    {"vit.layer.0.attention.probabilities",
     {.kind = Kind::logarithm, .bits = 4, .step = 0.9f, .per_octave = 2}},
    {"vit.layer.1.attention.probabilities",
     {.kind = Kind::twin_size, .bits = 4, .step = 0.001f, .shift = 7}}};

/// A folder with these sites, its configuration changed before it is written.
Checkpoint folder_with(const TempFolder& folder, const std::function<void(json& activations)>& change = {},
                       ActivationSites sites = kSites) {
  CheckpointWriter writer(folder.path(), {.overwrite = true});
  json activations = write_activation_sites(writer, sites, 4);
  if (change) change(activations);
  writer.finish({{"quantization_config", {{"activations", activations}}}});
  return Checkpoint::open(folder.path());
}

TEST(ActivationSitesFile, ReadsBackBitForBit) {
  const TempFolder folder;
  EXPECT_EQ(read_activation_sites(folder_with(folder)), kSites);
}

TEST(ActivationSitesFile, NoneWithoutConfiguration) {
  const TempFolder folder;
  CheckpointWriter writer(folder.path(), {});
  const float one = 1;
  writer.add("fc1.bias", "F32", {1}, &one);
  writer.finish({{"model_type", "vit"}});
  EXPECT_TRUE(read_activation_sites(Checkpoint::open(folder.path())).empty());
}

TEST(ActivationSitesFile, RefusesWhatIsDamaged) {
  const TempFolder folder;
  const std::string fc1 = "vit.layer.0.fc1.input", fc2 = "vit.layer.0.fc2.input";
  const auto refuses = [&](const std::string& part, const std::function<void(json&)>& change) {
    EXPECT_TRUE(throws_with(part, [&] { read_activation_sites(folder_with(folder, change)); }));
  };
  refuses("field 'version'", [](json& a) { a["version"] = 2; });
  refuses("version", [](json& a) { a.erase("version"); });
  refuses("sites", [](json& a) { a.erase("sites"); });
  refuses("expected an object", [&](json& a) { a["sites"][fc1] = 3; });
  refuses("field 'grid'", [&](json& a) { a["sites"][fc1]["grid"] = "cubic"; });
  refuses("bits", [&](json& a) { a["sites"][fc1]["bits"] = 9; });
  refuses("zero_point", [&](json& a) { a["sites"][fc1]["zero_point"] = 256; });
  refuses("zero_point", [&](json& a) { a["sites"][fc1].erase("zero_point"); });
  refuses("shift", [&](json& a) { a["sites"][fc2]["shift"] = 21; });
  refuses("shift", [&](json& a) { a["sites"][fc2]["shift"] = 1.5; });
  refuses("per_octave",
          [&](json& a) { a["sites"]["vit.layer.0.attention.probabilities"]["per_octave"] = 3; });
  refuses("vit.layer.9.fc1.input.scale",
          [&](json& a) { a["sites"]["vit.layer.9.fc1.input"] = a["sites"][fc1]; });
  refuses("is not the name of an activation site",
          [&](json& a) { a["sites"]["vit.layer.0.fc1"] = a["sites"][fc1]; });
  refuses("says nothing of the activation site whose tensor is \"vit.layer.0.fc1.input.scale\"",
          [&](json& a) { a["sites"].erase(fc1); });
}

TEST(ActivationSitesFile, RefusesStepsThatAreNone) {
  for (const float step : {0.0f, -1.0f, 1.0f / 0.0f, 0x1p-130f}) {
    const TempFolder folder;
    CheckpointWriter writer(folder.path(), {});
    writer.add("fc1.input.scale", "F32", {1}, &step);
    const json site = {{"grid", "affine"}, {"bits", 8}, {"zero_point", 3}};
    writer.finish(
        {{"quantization_config", {{"activations", {{"version", 1}, {"sites", {{"fc1.input", site}}}}}}}});
    EXPECT_TRUE(throws_with("the step is", [&] { read_activation_sites(Checkpoint::open(folder.path())); }))
        << step;
  }
}

}  // namespace
}  // namespace ballast
