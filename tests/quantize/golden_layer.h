// One layer of tests/golden/quantize: inputs, weights and, by case, what the reference makes of them.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/io/json.h"
#include "quantize/methods.h"
#include "quantize/statistics.h"
#include "tests/support/golden_tensors.h"

namespace ballast {

inline std::filesystem::path golden_quantize() {
  return std::filesystem::path(BALLAST_SOURCE_DIR) / "tests/golden/quantize";
}

inline const nlohmann::json& golden_quantize_index() {
  static const nlohmann::json index = parse_json(read_file(golden_quantize() / "cases.json", 1 << 20), "cases.json");
  return index;
}

struct GoldenLayer {
  explicit GoldenLayer(const std::string& layer_name)
      : name(layer_name),
        facts(golden_quantize_index().at(name)),
        tensors(golden_quantize() / (name + ".safetensors")),
        out(facts.at("rows")),
        in(facts.at("columns")),
        tokens(facts.at("tokens")),
        weight(tensors.floats("weight")),
        statistics(in, facts.at("positions"), true) {
    add("x", statistics);
  }

  /// Adds the inputs stored as `key` to `to`.
  void add(const std::string& key, Statistics& to) const {
    const std::vector<float> x = tensors.floats(key);
    const std::vector<int32_t> positions = tensors.ints("positions");
    to.add(*backend, {x.data(), DType::f32, {tokens, in}}, {positions.data(), DType::i32, {tokens}});
  }

  LayerProblem problem(const nlohmann::json& options, LayerInput* input) const {
    return {.name = options.at("name"),
            .out_features = out,
            .in_features = in,
            .weight = weight,
            .grid = {.bits = options.at("bits"),
                     .group_size = options.value("group_size", in),
                     .symmetric = options.value("symmetric", false),
                     .clip_search = options.value("clip_search", false),
                     .range_shrink = options.value("range_shrink", 1.0)},
            .static_groups = options.value("static_groups", false) || options.value("act_order", false),
            .input = input};
  }

  /// The product's answer to one case of cases.json.
  LayerSolution solve(const nlohmann::json& options) const {
    LayerInput input(*backend, activation_curvature(statistics, options.value("centred", false)),
                     {.damping = options.value("damping", 0.01), .act_order = options.value("act_order", false)},
                     name);
    const LayerProblem wanted = problem(options, &input);
    return method_named(options.at("method")).solve(*backend, wanted);
  }

  std::string name;
  nlohmann::json facts;
  GoldenTensors tensors;
  int64_t out, in, tokens;
  std::unique_ptr<Backend> backend = find_backend({.device = "cpu"});
  std::vector<float> weight;
  Statistics statistics;
};

}  // namespace ballast
