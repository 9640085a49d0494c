#include "quantize/output.h"
#include "quantize/quantizer.h"

namespace ballast {

QuantizePlan plan_quantization(const Checkpoint& source, nn::Model& model, const Recipe& recipe,
                               int64_t samples, int64_t length) {
  QuantizePlan plan;
  for (const StoredTensor& tensor : source.tensors()) plan.output_bytes += tensor.bytes;
  const double tokens = double(samples * length);
  double bits = 0;
  uint64_t largest_layer = 0, largest_moment = 0, block_bytes = 0;
  const auto count = [&](const nn::Linear& layer, const GridOptions& grid, bool shares_input) {
    const double in = double(layer.in_features()), out = double(layer.out_features());
    plan.gigaflops += (2 * tokens * in * out * 1.5 + (shares_input ? 0 : tokens * in * in)) * 1e-9;
    if (grid.bits == 0) return;
    const double group = double(grid.group_size);
    const double per_weight = grid.bits + (16 + grid.bits) / group;
    ++plan.modules;
    plan.weights += int64_t(in * out);
    bits += per_weight * in * out;
    if (const StoredTensor* tensor = source.find(layer.name + ".weight")) plan.output_bytes -= tensor->bytes;
    plan.output_bytes += uint64_t(per_weight * in * out / 8 + in * 4);
    if (recipe.compensation == Compensation::position)
      plan.output_bytes += uint64_t(2 * double(length) * out);
    plan.journal_bytes += uint64_t(per_weight * in * out / 8 + 4 * out);
    if (recipe.compensation == Compensation::position)
      plan.journal_bytes += uint64_t(4 * double(length) * out);
    plan.gigaflops += 2e-9 * in * in * (2 * out + in / 3);
    largest_layer = std::max(largest_layer, uint64_t(in * out));
    largest_moment = std::max(largest_moment, uint64_t(in * in));
  };
  // All blocks have the shape of the first.
  {
    const std::unique_ptr<nn::Block> block = model.make_block(0);
    block_bytes = uint64_t(block->bytes());
    const std::string first = "layers.0.";
    for (int64_t index = 0; index < model.facts().layers; ++index)
      for (const auto& branch : block->branches) {
        std::vector<nn::Linear*> layers = branch->expand();
        layers.push_back(&branch->contract());
        for (nn::Linear* layer : layers) {
          const std::string original = layer->name;
          const size_t at = original.find(first);
          if (at != std::string::npos)
            layer->name =
                original.substr(0, at) + str("layers.", index, ".") + original.substr(at + first.size());
          count(*layer, recipe.grid_for(layer->name, layer->in_features()),
                layer != layers.front() && layer != layers.back());
          layer->name = original;
        }
      }
  }
  if (recipe.head_bits) {
    const nn::Linear& head = model.lm_head();
    count(head, recipe.head_grid(head.name, head.in_features()), false);
  }
  plan.journal_bytes += uint64_t(tokens * 4);
  plan.bits_per_weight = plan.weights > 0 ? bits / double(plan.weights) : 0;
  const uint64_t streams =
      uint64_t(tokens) * uint64_t(model.facts().hidden) * 4 * (recipe.correct_drift ? 2 : 1);
  // Second moment, its damped copy and U; the layer's weights, working copy, difference, codes and products;
  // one block.
  plan.peak_memory_bytes = streams + largest_moment * (8 + 8 + 8 + 4) + largest_layer * (4 * 5 + 2) +
                           2 * block_bytes + uint64_t(model.lm_head().bytes()) + (uint64_t(256) << 20);
  return plan;
}

}  // namespace ballast
