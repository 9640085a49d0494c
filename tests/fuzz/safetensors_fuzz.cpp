// A safetensors file from memory. What is accepted lies inside the file, without overlap, and its header
// written anew is read as the same tensors.
#include <cstdlib>
#include <string>
#include <string_view>

#include "engine/io/safetensors.h"
#include "kernels/check.h"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace ballast;
  const std::string_view file(reinterpret_cast<const char*>(data), size);
  std::vector<StoredTensor> tensors;
  try {
    tensors = parse_safetensors(file, "input");
  } catch (const Error& error) {
    const std::string_view message = error.what();
    require(message.find('\n') == message.npos && message.size() < 1000);
    return 0;
  }
  uint64_t end = tensors.empty() ? size : tensors[0].offset;
  for (const StoredTensor& tensor : tensors) {
    require(tensor.offset == end && tensor.bytes <= size - tensor.offset && tensor.shape.size() <= 8);
    end += tensor.bytes;
    const int bits = bits_of_dtype(tensor.dtype);
    if (bits != 0) require(uint64_t(tensor.elements()) * uint64_t(bits) == tensor.bytes * 8);
    if (bits == 0) return 0;  // never written
  }
  require(end == size);

  const std::string header = safetensors_header(tensors);
  const uint64_t shift = tensors.empty() ? 0 : tensors[0].offset;
  const std::string copy = header + std::string(file.substr(tensors.empty() ? size : shift));
  const std::vector<StoredTensor> again = parse_safetensors(copy, "copy");
  require(again.size() == tensors.size());
  for (size_t i = 0; i < again.size(); ++i) {
    require(again[i].dtype == tensors[i].dtype && again[i].shape == tensors[i].shape);
    require(again[i].name == tensors[i].name && again[i].bytes == tensors[i].bytes);
    require(again[i].offset - header.size() == tensors[i].offset - shift);
  }
  return 0;
}
