// What a run keeps of its finished parts, to and from bytes: the same bits back.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "engine/io/activation_sites.h"
#include "kernels/encodings/quantized_matrix.h"
#include "quantize/data.h"
#include "quantize/report.h"

namespace ballast {

/// One finished module: all that the checkpoint, the report and the layers behind it need of it.
struct LayerRecord {
  QuantizedMatrix matrix;
  std::vector<float> bias;       ///< [out_features] as stored, compensation included; empty: unchanged
  std::vector<float> positions;  ///< [n, out_features] as stored; empty: none
  LayerReport report;
};

// Under which names a journal holds them.
inline std::string layer_key(const std::string& module) {
  return "layer " + module;
}
/// Of the grids of a layer's input and of the sites before it in its branch; named after the first layer that reads it.
inline std::string grids_key(const std::string& module) {
  return "grids " + module;
}
inline constexpr char kTokensKey[] = "calibration tokens";
inline constexpr char kWidthsKey[] = "widths";
inline constexpr char kAllLayers[] = "all layers";  ///< an empty record behind the last layer's

std::string to_bytes(const LayerRecord& record);
std::string to_bytes(const CalibrationTokens& tokens);
std::string to_bytes(const std::map<std::string, int>& widths);
/// With the factors and shifts of their input's channels (range_fold.h), or without.
std::string to_bytes(const ActivationSites& sites, const std::vector<float>& factors, const std::vector<float>& shifts);

/// Any bytes give a consistent value or one Error that begins with `what`; memory is bounded by the bytes'
/// own number.
LayerRecord layer_from_bytes(std::string_view bytes, const std::string& what);
CalibrationTokens tokens_from_bytes(std::string_view bytes, const std::string& what);
std::map<std::string, int> widths_from_bytes(std::string_view bytes, const std::string& what);
std::tuple<ActivationSites, std::vector<float>, std::vector<float>> sites_from_bytes(std::string_view bytes, const std::string& what);

}  // namespace ballast
