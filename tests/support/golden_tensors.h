// Reads a safetensors file of reference values.
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

  std::vector<float> floats(const std::string& name) const { return values<float>(name, "F32"); }
  std::vector<uint8_t> bytes(const std::string& name) const { return values<uint8_t>(name, "U8"); }
  std::vector<int32_t> ints(const std::string& name) const { return values<int32_t>(name, "I32"); }

 private:
  template <class T>
  std::vector<T> values(const std::string& name, const char* dtype) const {
    for (const StoredTensor& tensor : tensors_) {
      if (tensor.name != name) continue;
      CHECK(tensor.dtype == dtype, name);
      std::vector<T> values(size_t(tensor.elements()));
      std::memcpy(values.data(), bytes_.data() + tensor.offset, tensor.bytes);
      return values;
    }
    throw Error("no golden tensor " + name);
  }

  std::string bytes_;
  std::vector<StoredTensor> tensors_;
};

}  // namespace ballast
