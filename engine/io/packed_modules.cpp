#include <algorithm>
#include <cstring>

#include "engine/io/json.h"
#include "engine/io/packed_layouts.h"

namespace ballast {
namespace {

constexpr int64_t kMaxFeatures = int64_t(1) << 31;

[[noreturn]] void fail(const Checkpoint& checkpoint, const std::string& name, const std::string& reason) {
  throw Error(str(checkpoint.folder().string(), ": tensor ", shown(name, 200), ": ", reason));
}

int64_t checked(const Checkpoint& checkpoint, const std::string& name, int64_t features) {
  if (features < 1 || features > kMaxFeatures)
    fail(checkpoint, name, str("expected 1 to ", kMaxFeatures, " features, got ", features));
  return features;
}

PackedModule gptq_module(const Checkpoint& checkpoint, const PackedConfig& config, const std::string& module,
                         const StoredTensor& qweight) {
  if (qweight.shape.size() != 2)
    fail(checkpoint, qweight.name, str("expected rank 2, got ", qweight.shape.size()));
  int64_t in_features = 0;
  if (const StoredTensor* g_idx = checkpoint.find(module + ".g_idx"); g_idx && g_idx->shape.size() == 1)
    in_features = g_idx->shape[0];
  else if (!config.mixed)
    in_features = checked(checkpoint, qweight.name, qweight.shape[0]) * 32 / config.bits;
  else
    fail(checkpoint, module + ".g_idx",
         "is missing; where modules differ it tells how many inputs there are");
  return {module, checked(checkpoint, qweight.name, qweight.shape[1]),
          checked(checkpoint, qweight.name, in_features)};
}

PackedModule pack_quantized_module(const Checkpoint& checkpoint, const std::string& module) {
  const StoredTensor& shape = checkpoint.require(module + ".weight_shape");
  if ((shape.dtype != "I64" && shape.dtype != "I32") || shape.shape != std::vector<int64_t>{2})
    fail(checkpoint, shape.name, "expected two I64 numbers");
  int64_t features[2] = {0, 0};
  for (int i = 0; i < 2; ++i) {
    int32_t narrow = 0;
    if (shape.dtype == "I64") std::memcpy(&features[i], checkpoint.bytes(shape) + 8 * i, 8);
    if (shape.dtype == "I32")
      features[i] = (std::memcpy(&narrow, checkpoint.bytes(shape) + 4 * i, 4), narrow);
  }
  return {module, checked(checkpoint, shape.name, features[0]), checked(checkpoint, shape.name, features[1])};
}

PackedModule half_zeros_module(const Checkpoint& checkpoint, const PackedConfig& config,
                               const std::string& module) {
  const StoredTensor& scales = checkpoint.require(module + ".weight_scale");
  if (scales.shape.size() != 2)
    fail(checkpoint, scales.name, str("expected rank 2, got ", scales.shape.size()));
  const int64_t rows = checked(checkpoint, scales.name, scales.shape[0]),
                groups = checked(checkpoint, scales.name, scales.shape[1]);
  const int64_t group_size = read_half_zero_grid({checkpoint, config, module, rows, 0}).group_size;
  return {module, rows, checked(checkpoint, scales.name, groups * group_size)};
}

}  // namespace

std::vector<PackedModule> packed_modules(const Checkpoint& checkpoint, const PackedConfig& config) {
  std::vector<PackedModule> modules;
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    const size_t dot = tensor.name.rfind('.');
    if (dot == std::string::npos) continue;
    const std::string module = tensor.name.substr(0, dot), part = tensor.name.substr(dot + 1);
    if (part == "qweight") modules.push_back(gptq_module(checkpoint, config, module, tensor));
    if (part == "weight_half_zeros") modules.push_back(half_zeros_module(checkpoint, config, module));
    if (part == "weight_packed") modules.push_back(pack_quantized_module(checkpoint, module));
  }
  return modules;
}

}  // namespace ballast
