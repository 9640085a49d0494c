// Modules and folders for the tests of stored layouts.
#pragma once

#include "engine/io/quantized.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <map>
#include <random>

#include "tests/support/expect_error.h"
#include "tests/support/matrices.h"
#include "tests/support/temp_folder.h"

namespace ballast {

using nlohmann::json;

inline AffineMatrix random_matrix(int bits, int64_t out_features, int64_t in_features, int64_t group_size,
                                  bool symmetric, unsigned seed = 1) {
  std::mt19937 random(seed);
  AffineMatrix matrix{
      .bits = bits, .out_features = out_features, .in_features = in_features, .group_size = group_size};
  for (int64_t i = 0; i < out_features * in_features; ++i)
    matrix.codes.push_back(uint8_t(random() & unsigned(matrix.max_code())));
  for (int64_t i = 0; i < out_features * matrix.groups(); ++i) {
    matrix.scales.push_back(uint16_t(0x1000 + random() % 0x3000));
    matrix.zero_points.push_back(symmetric ? uint8_t(1 << (bits - 1))
                                           : uint8_t(random() & unsigned(matrix.max_code())));
  }
  // Zero point 0 and the largest one are the edges of the minus-one rule.
  if (!symmetric) matrix.zero_points[0] = 0, matrix.zero_points.back() = uint8_t(matrix.max_code());
  return matrix;
}

inline void expect_equal(const AffineMatrix& a, const AffineMatrix& b) {
  EXPECT_EQ(a.bits, b.bits);
  EXPECT_EQ(a.out_features, b.out_features);
  EXPECT_EQ(a.in_features, b.in_features);
  EXPECT_EQ(a.group_size, b.group_size);
  EXPECT_EQ(a.codes, b.codes);
  EXPECT_EQ(a.scales, b.scales);
  EXPECT_EQ(a.zero_points, b.zero_points);
}

inline json config_for(PackedLayout layout, const AffineMatrix& matrix, bool symmetric) {
  PackedConfig config{.layout = layout,
                      .bits = matrix.bits,
                      .group_size = matrix.group_size == matrix.in_features ? -1 : matrix.group_size,
                      .symmetric = symmetric};
  if (matrix.half_zeros) config.encodings = {kHalfZeros};
  return {{"quantization_config", packed_config_json(config)}};
}

/// As above for any encoding; `layout` counts for affine matrices only.
inline json config_for(PackedLayout layout, const QuantizedMatrix& matrix, bool symmetric) {
  if (const auto* affine = std::get_if<AffineMatrix>(&matrix)) return config_for(layout, *affine, symmetric);
  const PackedConfig config{.layout = PackedLayout::ballast,
                            .bits = 3,
                            .group_size = 16,
                            .encodings = {std::string(encoding_name(matrix))}};
  return {{"quantization_config", packed_config_json(config)}};
}

/// A checkpoint whose module "m" can be changed tensor by tensor before it is written.
struct Module {
  struct Tensor {
    std::string dtype;
    std::vector<int64_t> shape;
    std::string data;
  };
  std::map<std::string, Tensor> tensors;
  json config;
  int64_t out_features, in_features;

  explicit Module(const QuantizedMatrix& matrix) : Module(PackedLayout::ballast, matrix, false) {}
  Module(PackedLayout layout, const QuantizedMatrix& matrix, bool symmetric)
      : config(config_for(layout, matrix, symmetric)),
        out_features(ballast::out_features(matrix)),
        in_features(ballast::in_features(matrix)) {
    const TempFolder folder;
    CheckpointWriter writer(folder / "a", {});
    write_quantized(writer, "m", matrix, layout, symmetric);
    writer.finish(config);
    const Checkpoint checkpoint = Checkpoint::open(folder / "a");
    for (const StoredTensor& tensor : checkpoint.tensors())
      tensors[tensor.name] = {tensor.dtype, tensor.shape,
                              std::string(checkpoint.bytes(tensor), tensor.bytes)};
  }
  template <class T>
  void set(const std::string& name, const std::string& dtype, const std::vector<int64_t>& shape,
           const std::vector<T>& values) {
    tensors["m." + name] = {
        dtype, shape, std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T))};
  }
  template <class T>
  void poke(const std::string& name, size_t index, T value) {
    std::memcpy(tensors.at("m." + name).data.data() + index * sizeof(T), &value, sizeof(T));
  }
  template <class T>
  T peek(const std::string& name, size_t index) const {
    T value;
    std::memcpy(&value, tensors.at("m." + name).data.data() + index * sizeof(T), sizeof(T));
    return value;
  }
  json& quantization() { return config["quantization_config"]; }

  template <class Use>
  void with_checkpoint(const Use& use) const {
    const TempFolder folder;
    CheckpointWriter writer(folder / "a", {});
    for (const auto& [name, tensor] : tensors)
      writer.add(name, tensor.dtype, tensor.shape, tensor.data.data());
    writer.finish(config);
    use(Checkpoint::open(folder / "a"));
  }
  AffineMatrix read() const {
    AffineMatrix matrix;
    with_checkpoint([&](const Checkpoint& checkpoint) {
      matrix = read_packed(checkpoint, "m", out_features, in_features);
    });
    return matrix;
  }
  QuantizedMatrix read_any() const {
    QuantizedMatrix matrix;
    with_checkpoint([&](const Checkpoint& checkpoint) {
      matrix = read_quantized(checkpoint, "m", out_features, in_features);
    });
    return matrix;
  }
  ::testing::AssertionResult fails_with(const std::string& part) const {
    return throws_with(part, [&] { read_any(); });
  }
};

/// Modules of several shapes and group sizes, all in one folder.
}  // namespace ballast
