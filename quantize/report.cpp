#include "quantize/report.h"

#include <iomanip>

#include "kernels/check.h"

namespace ballast {

double QuantizeReport::bits_per_weight() const {
  double bits = 0, weights = 0;
  for (const LayerReport& layer : layers) {
    const double count = double(layer.out_features * layer.in_features);
    bits += layer.bits_per_weight * count;
    weights += count;
  }
  return weights > 0 ? bits / weights : 0;
}

nlohmann::json QuantizeReport::json() const {
  nlohmann::json rows = nlohmann::json::array();
  for (const LayerReport& layer : layers)
    rows.push_back({{"name", layer.name},
                    {"shape", {layer.out_features, layer.in_features}},
                    {"bits", layer.bits},
                    {"group_size", layer.group_size},
                    {"bits_per_weight", layer.bits_per_weight},
                    {"error_before", layer.error_before},
                    {"error_after", layer.error_after},
                    {"damping", layer.damping},
                    {"zero_inputs", layer.zero_inputs},
                    {"outlier_share", layer.outlier_share},
                    {"seconds", layer.seconds}});
  return {{"recipe", recipe.name},
          {"method", recipe.method},
          {"bits", recipe.grid.bits},
          {"target_bits", recipe.target_bits},
          {"group_size", recipe.grid.group_size},
          {"symmetric", recipe.grid.symmetric},
          {"zero_points", recipe.grid.half_zeros() ? "half" : "whole"},
          {"compensation", name_of(recipe.compensation)},
          {"correct_drift", recipe.correct_drift},
          {"damping", recipe.damping},
          {"act_order", recipe.act_order},
          {"one_pass", recipe.one_pass},
          {"calibration",
           {{"source", calibration},
            {"hash", str(std::hex, calibration_hash)},
            {"samples", samples},
            {"views", views},
            {"length", length}}},
          {"curvature", name_of(recipe.curvature)},
          {"class_weight", recipe.class_weight},
          {"asymmetric", recipe.asymmetric},
          {"gptaq", recipe.gptaq},
          {"range_shrink", recipe.grid.range_shrink},
          {"sweeps", recipe.options.sweeps},
          {"tune_epochs", recipe.tune_epochs},
          {"tune_codes", recipe.tune_codes},
          {"tune_hidden", recipe.tune_hidden},
          {"tuning_codes_moved", tuning_codes_moved},
          {"tuning_kl_before", tuning_before},
          {"tuning_kl_after", tuning_after},
          {"bits_per_weight", bits_per_weight()},
          {"seconds", seconds},
          {"peak_memory_bytes", peak_memory_bytes},
          {"output_bytes", output_bytes},
          {"kept_float", kept_float},
          {"layers", rows}};
}

std::string QuantizeReport::table() const {
  std::ostringstream out;
  size_t width = 6;
  for (const LayerReport& layer : layers) width = std::max(width, layer.name.size());
  out << std::left << std::setw(int(width)) << "module" << std::right << std::setw(14) << "shape"
      << std::setw(6) << "bits" << std::setw(10) << "b/weight" << std::setw(12) << "error" << std::setw(14)
      << "compensated" << std::setw(9) << "damping" << std::setw(9) << "seconds" << '\n';
  out << std::setprecision(3);
  for (const LayerReport& layer : layers)
    out << std::left << std::setw(int(width)) << layer.name << std::right << std::setw(14)
        << str(layer.out_features, "x", layer.in_features) << std::setw(6) << layer.bits << std::fixed
        << std::setw(10) << layer.bits_per_weight << std::setprecision(5) << std::setw(12)
        << layer.error_before << std::setw(14) << layer.error_after << std::defaultfloat
        << std::setprecision(3) << std::setw(9) << layer.damping << std::fixed << std::setprecision(2)
        << std::setw(9) << layer.seconds << std::setprecision(3) << '\n';
  return out.str();
}

}  // namespace ballast
