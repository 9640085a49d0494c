#include "quantize/output.h"

#include <algorithm>

namespace ballast {
namespace {

// Symmetric 4-bit files are read by the most programs in the first GPTQ layout; it cannot hold a zero point
// of 0, so everything else is written in the second.
PackedLayout layout_for(const Recipe& recipe) {
  return recipe.grid.symmetric && recipe.grid.bits == 4 ? PackedLayout::gptq_v1 : PackedLayout::gptq_v2;
}

std::vector<uint16_t> to_16_bits(std::span<const float> values, bool bfloat) {
  std::vector<uint16_t> out(values.size());
  for (size_t i = 0; i < values.size(); ++i) out[i] = bfloat ? f32_to_bf16(values[i]) : f32_to_f16(values[i]);
  return out;
}

}  // namespace

QuantizedOutput::QuantizedOutput(const Checkpoint& source, CheckpointWriter& writer, const Recipe& recipe)
    : source_(source), writer_(writer), recipe_(recipe), layout_(layout_for(recipe)) {}

std::string QuantizedOutput::vector_dtype(const std::string& module) const {
  for (const char* suffix : {".bias", ".weight"})
    if (const StoredTensor* tensor = source_.find(module + suffix); tensor && tensor->dtype != "I32")
      return tensor->dtype;
  return "F16";
}

std::vector<float> QuantizedOutput::stored(const std::string& module, std::vector<float> values) const {
  const std::string dtype = vector_dtype(module);
  if (dtype == "F32") return values;
  for (float& value : values)
    value = dtype == "BF16" ? bf16_to_f32(f32_to_bf16(value)) : f16_to_f32(f32_to_f16(value));
  return values;
}

void QuantizedOutput::add_matrix(const std::string& module, const QuantizedMatrix& quantized) {
  const PackedLayout layout = write_quantized(writer_, module, quantized, layout_, recipe_.grid.symmetric);
  modules_.insert(module);
  if (layout == PackedLayout::ballast) {
    encodings_.insert(std::string(encoding_name(quantized)));
    return;
  }
  const AffineMatrix& matrix = std::get<AffineMatrix>(quantized);
  const bool per_row = matrix.group_size == matrix.in_features;
  const bool usual_group = recipe_.grid.group_size == 0
                               ? per_row
                               : matrix.group_size == std::min(recipe_.grid.group_size, matrix.in_features);
  if (layout != layout_ || matrix.bits != stored_code_bits(recipe_.grid.bits) || !usual_group)
    exceptions_.push_back({module, layout, matrix.bits, per_row ? -1 : matrix.group_size});
}

void QuantizedOutput::add_vector(const std::string& module, const std::string& suffix,
                                 std::span<const float> values, std::vector<int64_t> shape) {
  const std::string dtype = vector_dtype(module);
  if (dtype == "F32") {
    writer_.add(module + suffix, dtype, shape, values.data());
  } else {
    writer_.add(module + suffix, dtype, shape, to_16_bits(values, dtype == "BF16").data());
  }
  replaced_.insert(module + suffix);
}

void QuantizedOutput::finish(const QuantizeReport& report, bool biases_added) {
  for (const StoredTensor& tensor : source_.tensors()) {
    const size_t dot = tensor.name.rfind('.');
    const bool matrix_part = dot != std::string::npos && modules_.count(tensor.name.substr(0, dot)) &&
                             is_weight_part(tensor.name.substr(dot + 1));
    if (!matrix_part && !replaced_.count(tensor.name)) writer_.copy(source_, tensor);
  }
  writer_.copy_side_files(source_.folder());

  const PackedConfig packed{.layout = encodings_.empty() ? layout_ : PackedLayout::ballast,
                            .bits = stored_code_bits(recipe_.grid.bits),
                            .group_size = recipe_.grid.group_size == 0 ? -1 : recipe_.grid.group_size,
                            .symmetric = recipe_.grid.symmetric,
                            .encodings = {encodings_.begin(), encodings_.end()}};
  nlohmann::json quantization = packed_config_json(packed, exceptions_, report.kept_float);
  quantization["lm_head"] = recipe_.head_bits != 0;
  quantization["static_groups"] = recipe_.static_groups || recipe_.act_order;
  quantization["true_sequential"] = !recipe_.one_pass;
  quantization["damp_percent"] = recipe_.damping;
  quantization["meta"] = {{"quantizer", "ballast"},
                          {"recipe", recipe_.name},
                          {"method", recipe_.method},
                          {"bits_per_weight", report.bits_per_weight()},
                          {"compensation", name_of(recipe_.compensation)},
                          {"correct_drift", recipe_.correct_drift},
                          {"calibration", report.calibration},
                          {"calibration_hash", str(std::hex, report.calibration_hash)},
                          {"samples", report.samples},
                          {"views", report.views},
                          {"length", report.length}};
  if (!sites_.empty())
    quantization["activations"] = write_activation_sites(writer_, sites_, recipe_.activation_bits);
  nlohmann::json zero_inputs = nlohmann::json::object();
  for (const LayerReport& layer : report.layers)
    if (layer.zero_inputs > 0) zero_inputs[layer.name] = layer.zero_inputs;
  if (!zero_inputs.empty()) quantization["meta"][kZeroInputs] = zero_inputs;
  nlohmann::json config = source_.config();
  config["quantization_config"] = quantization;
  if (biases_added) config["enable_bias"] = true;
  // Its readers know affine layouts only.
  if (encodings_.empty()) writer_.add_file("quantize_config.json", quantization.dump(2) + "\n");
  tensor_bytes_ = writer_.tensor_bytes();
  writer_.finish(config);
}

}  // namespace ballast
