// One layer of tests/golden/quantize: inputs, weights and, by case, what the reference makes of them.
#pragma once

#include <gtest/gtest.h>

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
  static const nlohmann::json index =
      parse_json(read_file(golden_quantize() / "cases.json", 1 << 20), "cases.json");
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
            .options = {.sweeps = 0,
                        .unbiased_scales = false,
                        .outlier_threshold = options.value("outlier_threshold", 0.2),
                        .stat_bits = options.value("stat_bits", 3),
                        .block_size = options.value("block_size", 128)},
            .input = input};
  }

  /// The product's answer to one case of cases.json.
  LayerSolution solve(const nlohmann::json& options) const {
    LayerInput input(
        *backend, activation_curvature(statistics, options.value("centred", false)),
        {.damping = options.value("damping", 0.01), .act_order = options.value("act_order", false)}, name);
    const LayerProblem wanted = problem(options, &input);
    return method_named(options.at("method")).solve(*backend, wanted);
  }

  const nlohmann::json& options_of(const std::string& case_name) const {
    for (const nlohmann::json& options : facts.at("cases"))
      if (options.at("name") == case_name) return options;
    throw Error("no golden case " + case_name);
  }

  /// The reference's answer.
  AffineMatrix expected(const std::string& case_name) const {
    const std::vector<float> scales = tensors.floats(case_name + ".scales");
    AffineMatrix matrix{.bits = options_of(case_name).at("bits"),
                        .out_features = out,
                        .in_features = in,
                        .group_size = out * in / int64_t(scales.size()),
                        .codes = tensors.bytes(case_name + ".codes"),
                        .zero_points = tensors.bytes(case_name + ".zeros")};
    for (const float scale : scales) matrix.scales.push_back(f32_to_f16(scale));
    matrix.check(case_name);
    return matrix;
  }

  /// Σ over rows d of W − Q of d·H·dᵀ, and Σ of d².
  std::pair<double, double> errors(const QuantizedMatrix& matrix, const Curvature& curvature) const {
    double objective = 0, distance = 0;
    std::vector<float> q(static_cast<size_t>(in));
    for (int64_t row = 0; row < out; ++row) {
      decode_row(matrix, row, q.data());
      const auto d = [&](int64_t i) { return double(weight[size_t(row * in + i)]) - double(q[size_t(i)]); };
      for (int64_t i = 0; i < in; ++i) {
        distance += d(i) * d(i);
        for (int64_t j = 0; j < in; ++j) objective += d(i) * curvature.h[size_t(i * in + j)] * d(j);
      }
    }
    return {objective, distance};
  }

  std::string name;
  nlohmann::json facts;
  GoldenTensors tensors;
  int64_t out, in, tokens;
  std::unique_ptr<Backend> backend = find_backend({.device = "cpu"});
  std::vector<float> weight;
  Statistics statistics;
};

/// How many elements differ.
template <class T>
int64_t count_different(const std::vector<T>& got, const std::vector<T>& expected) {
  EXPECT_EQ(got.size(), expected.size());
  int64_t count = 0;
  for (size_t i = 0; i < std::min(got.size(), expected.size()); ++i) count += got[i] != expected[i];
  return count;
}

inline void expect_same(const AffineMatrix& got, const AffineMatrix& expected, const std::string& what) {
  EXPECT_EQ(count_different(got.scales, expected.scales), 0) << what << ": scales";
  EXPECT_EQ(count_different(got.zero_points, expected.zero_points), 0) << what << ": zero points";
  EXPECT_EQ(count_different(got.codes, expected.codes), 0) << what << ": codes";
}

inline std::vector<float> as_floats(const std::vector<uint16_t>& halves) {
  std::vector<float> out;
  for (const uint16_t half : halves) out.push_back(f16_to_f32(half));
  return out;
}

}  // namespace ballast
