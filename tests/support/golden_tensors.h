// Reads a float32 safetensors file of reference values.
#pragma once

#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "engine/io/json.h"
#include "engine/io/safetensors.h"
#include "kernels/check.h"

namespace ballast {

class GoldenTensors {
 public:
  explicit GoldenTensors(const std::filesystem::path& path)
      : bytes_(read_file(path, uint64_t(64) << 20)), tensors_(parse_safetensors(bytes_, path.string())) {}

  std::vector<float> floats(const std::string& name) const {
    for (const StoredTensor& tensor : tensors_) {
      if (tensor.name != name) continue;
      CHECK(tensor.dtype == "F32", name);
      std::vector<float> values(size_t(tensor.elements()));
      std::memcpy(values.data(), bytes_.data() + tensor.offset, tensor.bytes);
      return values;
    }
    throw Error("no golden tensor " + name);
  }

 private:
  std::string bytes_;
  std::vector<StoredTensor> tensors_;
};

}  // namespace ballast
