#include "engine/io/packed.h"

#include "tests/engine/io/packed_support.h"

namespace ballast {
namespace {

TEST(PackedConfig, FloatCheckpointsHaveNone) {
  Module module(PackedLayout::gptq_v2, random_matrix(4, 32, 64, 16, false), false);
  for (const json& config : {json::object(), json{{"quantization_config", nullptr}}}) {
    module.config = config;
    module.with_checkpoint([](const Checkpoint& checkpoint) { EXPECT_FALSE(packed_config(checkpoint)); });
  }
}

TEST(PackedConfig, OlderFoldersKeepItInAFileOfItsOwn) {
  const TempFolder folder;
  const AffineMatrix matrix = random_matrix(4, 32, 64, 16, true);
  CheckpointWriter writer(folder / "a", {});
  write_packed(writer, "m", matrix, PackedLayout::gptq_v1);
  writer.add_file("quantize_config.json", R"({"bits":4,"group_size":16,"desc_act":false,"sym":true})");
  writer.finish(json::object());
  expect_equal(read_packed(Checkpoint::open(folder / "a"), "m", 32, 64), matrix);
  folder.write("a/quantize_config.json", "[]");
  EXPECT_TRUE(throws_with("quantize_config.json: expected an object",
                          [&] { packed_config(Checkpoint::open(folder / "a")); }));
}

TEST(PackedConfig, ReadsPublishedForms) {
  const auto parse = [](const char* text) { return *parse_packed_config(json::parse(text), "c"); };
  PackedConfig config =
      parse(R"({"quant_method":"gptq","bits":4,"group_size":128,"desc_act":true,"sym":false,"meta":{}})");
  EXPECT_EQ(config.layout, PackedLayout::gptq_v1);
  EXPECT_EQ(config.bits, 4);
  EXPECT_EQ(config.group_size, 128);
  EXPECT_FALSE(config.symmetric);
  config = parse(
      R"({"quant_method":"gptq","bits":3,"checkpoint_format":"gptq_v2","pack_dtype":"int32","dynamic":{}})");
  EXPECT_EQ(config.layout, PackedLayout::gptq_v2);
  EXPECT_EQ(config.group_size, -1);
  EXPECT_TRUE(config.symmetric);
  EXPECT_FALSE(config.mixed);
  EXPECT_FALSE(parse(R"({"quant_method":"gptq","bits":3,"dynamic":{"-:^head$":{}}})").mixed);
  EXPECT_TRUE(parse(R"({"quant_method":"gptq","bits":3,"dynamic":{"-:a":{},"b":{"bits":4}}})").mixed);
  config = parse(R"({"quant_method":"compressed-tensors","format":"pack-quantized","ignore":["lm_head"],
    "config_groups":{"group_0":{"targets":["Linear"],"input_activations":null,
    "weights":{"num_bits":4,"type":"int","symmetric":true,"strategy":"group","group_size":128}}}})");
  EXPECT_EQ(config.layout, PackedLayout::pack_quantized);
  EXPECT_EQ(config.group_size, 128);
  config = parse(R"({"quant_method":"compressed-tensors","format":"pack-quantized",
    "config_groups":{"a":{"weights":{"num_bits":8,"type":"int","symmetric":false,"strategy":"channel","group_size":null}}}})");
  EXPECT_EQ(config.group_size, -1);
  EXPECT_FALSE(config.symmetric);
}

TEST(PackedConfig, SharesOfZeroInputs) {
  const auto parse = [](const char* meta) {
    return parse_packed_config({{"quant_method", "gptq"}, {"bits", 4}, {"meta", json::parse(meta)}}, "c")
        ->zero_inputs;
  };
  EXPECT_TRUE(parse("{}").empty());
  EXPECT_TRUE(parse("[1]").empty());
  EXPECT_EQ(parse(R"({"zero_inputs":{"a.fc2":0.5,"b.fc2":1}})"),
            (std::map<std::string, double>{{"a.fc2", 0.5}, {"b.fc2", 1}}));
  for (const char* meta : {R"({"zero_inputs":[]})", R"({"zero_inputs":{"a":"b"}})",
                           R"({"zero_inputs":{"a":1.01}})", R"({"zero_inputs":{"a":-0.1}})"})
    EXPECT_TRUE(throws_with("c: field 'meta.zero_inputs': expected", [&] { parse(meta); })) << meta;
}

TEST(PackedConfig, RejectsWhatItCannotRead) {
  const json gptq = json::parse(R"({"quant_method":"gptq","bits":4,"group_size":128})");
  const json packed = json::parse(R"({"quant_method":"compressed-tensors","format":"pack-quantized",
    "config_groups":{"group_0":{"weights":{"num_bits":4,"strategy":"group","group_size":128}}}})");
  const std::string weights = "/config_groups/group_0/weights";
  const json own = json::parse(R"({"quant_method":"ballast","version":1,"encodings":[],"bits":3})");
  struct Row {
    const json& base;
    std::string pointer;
    json value;
    const char* part;
  };
  const Row rows[] = {
      {gptq, "/quant_method", "awq",
       "'quant_method': expected \"gptq\", \"compressed-tensors\" or \"ballast\", got \"awq\""},
      {gptq, "/quant_method", 1, "'quant_method': expected a string"},
      {gptq, "/bits", 5, "'bits': expected 2, 3, 4 or 8, got 5"},
      {gptq, "/bits", 0, "'bits': expected an integer"},
      {gptq, "/bits", -4, "'bits': expected an integer"},
      {gptq, "/bits", 1e9, "'bits': expected an integer"},
      {gptq, "/bits", "4", "'bits': expected an integer"},
      {gptq, "/bits", nullptr, "'bits': expected an integer"},
      {gptq, "/group_size", 0, "'group_size': expected -1 or at least 1, got 0"},
      {gptq, "/group_size", -2, "'group_size': expected an integer"},
      {gptq, "/group_size", uint64_t(1) << 63, "'group_size': expected an integer"},
      {gptq, "/group_size", 128.0, "'group_size': expected an integer"},
      {gptq, "/sym", 1, "'sym': expected true or false"},
      {gptq, "/desc_act", "no", "'desc_act': expected true or false"},
      {gptq, "/checkpoint_format", "marlin",
       "'checkpoint_format': expected \"gptq\" or \"gptq_v2\", got \"marlin\""},
      {gptq, "/format", "gptq_p", "expected \"gptq\" or \"gptq_v2\""},
      {gptq, "/pack_dtype", "int64", "'pack_dtype': expected \"int32\""},
      {gptq, "/dynamic", 1, "'dynamic': expected an object"},
      {packed, "/format", "int-quantized", "'format': expected \"pack-quantized\", got \"int-quantized\""},
      {packed, "/format", nullptr, "'format': expected a string, got null"},
      {packed, "/config_groups", json::array(), "'config_groups': expected an object"},
      {packed, "/config_groups", json::object(), "at least one group"},
      {packed, "/config_groups/group_0", 1, "expected an object, got 1"},
      {packed, "/config_groups/group_0/format", "nvfp4-pack-quantized",
       "'format': expected \"pack-quantized\""},
      {packed,
       "/config_groups/group_0/input_activations",
       {{"num_bits", 8}},
       "'input_activations': expected null"},
      {packed, weights, nullptr, "'weights': expected an object, got null"},
      {packed, weights + "/type", "float", "'type': expected \"int\""},
      {packed, weights + "/num_bits", 6, "'num_bits': expected 2, 3, 4 or 8, got 6"},
      {packed, weights + "/strategy", "block",
       "'strategy': expected \"group\" or \"channel\", got \"block\""},
      {packed, weights + "/strategy", "channel", "strategy \"channel\" contradicts group_size 128"},
      {packed, weights + "/group_size", nullptr, "strategy \"group\" contradicts group_size -1"},
      {packed, weights + "/group_size", 0, "'group_size': expected -1 or at least 1"},
      {own, "/version", 2, "'version': expected 1, got 2"},
      {own, "/version", "1", "'version': expected an integer"},
      {own, "/version", nullptr, "'version': expected an integer"},
      {own, "/encodings", "residual_binary", "'encodings': expected an array"},
      {own, "/encodings", json::array({"residual_binary", "ternary"}),
       "'encodings': expected \"half_zero_points\", \"sparse_outliers\" or \"residual_binary\", got "
       "\"ternary\""},
      {own, "/encodings", json::array({7}),
       "'encodings': expected \"half_zero_points\", \"sparse_outliers\" or \"residual_binary\", got 7"},
      {own, "/bits", 9, "'bits': expected an integer"},
      {own, "/group_size", 0, "'group_size': expected -1 or at least 1"},
      {own, "/sym", "no", "'sym': expected true or false"},
  };
  EXPECT_NO_THROW(parse_packed_config(gptq, "c"));
  EXPECT_NO_THROW(parse_packed_config(packed, "c"));
  EXPECT_NO_THROW(parse_packed_config(own, "c"));
  for (const Row& row : rows) {
    json config = row.base;
    config[json::json_pointer(row.pointer)] = row.value;
    EXPECT_TRUE(throws_with(row.part, [&] { parse_packed_config(config, "c"); }))
        << row.pointer << " " << row.value;
  }
  json both = gptq;
  both["format"] = "gptq";
  both["checkpoint_format"] = "gptq_v2";
  EXPECT_TRUE(throws_with("contradicts", [&] { parse_packed_config(both, "c"); }));
  EXPECT_TRUE(throws_with("expected an object", [&] { parse_packed_config(json(4), "c"); }));
}

}  // namespace
}  // namespace ballast
