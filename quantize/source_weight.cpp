#include "quantize/source_weight.h"

#include <cmath>

#include "engine/io/quantized.h"

namespace ballast {

std::vector<float> source_weight(const Checkpoint& source, const nn::Linear& layer) {
  std::vector<float> weight;
  if (has_quantized_weight(source, layer.name)) {
    const QuantizedMatrix matrix =
        read_quantized(source, layer.name, layer.out_features(), layer.in_features());
    weight.resize(size_t(layer.out_features() * layer.in_features()));
    for (int64_t row = 0; row < layer.out_features(); ++row)
      decode_row(matrix, row, weight.data() + row * layer.in_features());
  } else {
    const StoredTensor& tensor = source.require(layer.name + ".weight");
    weight = source.floats(tensor);
    source.release(tensor);
  }
  for (size_t i = 0; i < weight.size(); ++i)
    if (!std::isfinite(weight[i]))
      throw Error(str(layer.name, ".weight: element [", int64_t(i) / layer.in_features(), ", ",
                      int64_t(i) % layer.in_features(), "] is ", weight[i],
                      "; a model with non-finite weights cannot be quantized"));
  return weight;
}

}  // namespace ballast
