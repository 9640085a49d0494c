// Quantized checkpoints for tests, without the quantizer and with nothing but what a bare machine has.
#pragma once

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <string>

#include "engine/io/quantized.h"

namespace ballast::test {

/// An OPT checkpoint in f16 with every matrix but the positions rounded to `bits`, as a method without calibration would.
inline void write_rounded(const std::filesystem::path& from, const std::filesystem::path& folder, int bits,
                          int64_t group_size) {
  const Checkpoint source = Checkpoint::open(from);
  CheckpointWriter writer(folder, {});
  for (const StoredTensor& tensor : source.tensors()) {
    if (tensor.shape.size() != 2 || tensor.name.find("embed_positions") != std::string::npos) {
      writer.copy(source, tensor);
      continue;
    }
    AffineMatrix matrix{.bits = bits,
                        .out_features = tensor.shape[0],
                        .in_features = tensor.shape[1],
                        .group_size = group_size};
    const auto* halves = static_cast<const uint16_t*>(source.view(tensor).data);
    for (int64_t row = 0; row < matrix.out_features; ++row)
      for (int64_t first = 0; first < matrix.in_features; first += group_size) {
        float low = 0, high = 0;
        const auto at = [&](int64_t i) { return f16_to_f32(halves[row * matrix.in_features + first + i]); };
        for (int64_t i = 0; i < group_size; ++i) low = std::min(low, at(i)), high = std::max(high, at(i));
        const uint16_t scale = f32_to_f16(std::max(high - low, 1e-4f) / float(matrix.max_code()));
        const float step = f16_to_f32(scale);
        const int zero = std::clamp(int(std::lround(-low / step)), 0, matrix.max_code());
        matrix.scales.push_back(scale);
        matrix.zero_points.push_back(uint8_t(zero));
        for (int64_t i = 0; i < group_size; ++i)
          matrix.codes.push_back(
              uint8_t(std::clamp(int(std::lround(at(i) / step)) + zero, 0, matrix.max_code())));
      }
    write_quantized(writer, tensor.name.substr(0, tensor.name.rfind('.')), matrix,
                    PackedLayout::pack_quantized, false);
  }
  nlohmann::json config = source.config();
  config["quantization_config"] = packed_config_json(
      {.layout = PackedLayout::pack_quantized, .bits = bits, .group_size = int(group_size)});
  writer.finish(config);
}

}  // namespace ballast::test
