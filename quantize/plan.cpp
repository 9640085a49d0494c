#include <algorithm>

#include "engine/io/quantized.h"
#include "quantize/calibration.h"
#include "quantize/methods.h"
#include "quantize/output.h"
#include "quantize/quantizer.h"

namespace ballast {

namespace {

constexpr uint64_t kProgramBytes = uint64_t(32) << 20;  // code, tokenizer and small change

// Hidden states as binary16, and what one pass over a part of them needs: hidden states, their norm, and q, k,
// v and the attention's output or fc1's; keys and values (with a quarter for the workspace's growth); the same
// packed for the products.
uint64_t stream_bytes(const nn::ModelFacts& facts, const Recipe& recipe, int64_t samples, int64_t length) {
  const uint64_t streams = recipe.keeps_reference() ? 2 : 1;
  const uint64_t hidden = uint64_t(facts.hidden), widest = uint64_t(std::max(facts.ffn, 4 * facts.hidden));
  const uint64_t tokens = uint64_t(samples * length), rows = uint64_t(calibration_part_rows(samples, length));
  const uint64_t kept = streams == 1 && !recipe.one_pass ? 1 : 0;  // inputs of the contract layer
  return (streams + kept) * tokens * (2 * hidden + 4) + streams * rows * 5 * (4 * hidden + widest) +
         4 * widest * (std::max<uint64_t>(rows, 1024) + 1024);
}

// Second moment, curvature and factor share one f64 matrix, unless a method wants curvature and factor at once (sweeps
// also have the curvature in f32). Asymmetric targets need the drift's cross moment in f32.
uint64_t matrix_bytes_per_element(const Recipe& recipe) {
  return 8 + (recipe.options.sweeps > 0 ? 8 + 4 : 0) + (recipe.correlates_inputs() ? 4 : 0) +
         (recipe.gptaq > 0 ? 4 + 4 : 0);
}

}  // namespace

QuantizePlan plan_quantization(const Checkpoint& source, nn::Model& model, const Recipe& recipe,
                               int64_t samples, int64_t length) {
  QuantizePlan plan;
  const Method& method = method_named(recipe.method);
  for (const StoredTensor& tensor : source.tensors()) plan.output_bytes += tensor.bytes;
  const double tokens = double(samples * length);
  double bits = 0, least_bits = 0;  // least: with the smallest widths, whatever the target
  std::vector<uint8_t> matched(recipe.overrides.size());
  uint64_t largest_layer = 0, largest_input = 0, block_bytes = 0;
  const auto count = [&](const nn::Linear& layer, const GridOptions& grid, bool shares_input) {
    const double in = double(layer.in_features()), out = double(layer.out_features());
    plan.gigaflops += (2 * tokens * in * out * 1.5 + (shares_input ? 0 : tokens * in * in)) * 1e-9;
    for (size_t i = 0; i < matched.size(); ++i)
      if (std::regex_search(layer.name, recipe.overrides[i].regex)) matched[i] = 1;
    if (grid.bits == 0) return;
    if (!source.find(layer.name + ".weight") && !has_quantized_weight(source, layer.name))
      throw Error(str(source.folder().string(), ": ", layer.name,
                      " is not stored as a matrix of its own, so it cannot be quantized"));
    const double per_weight = recipe.target_bits > 0
                                  ? recipe.target_bits
                                  : method.stored_bits(int64_t(out), int64_t(in), grid, recipe.options);
    if (recipe.target_bits > 0) {
      GridOptions least = grid;
      least.bits = std::min(least.bits, 2);
      least_bits += method.stored_bits(int64_t(out), int64_t(in), least, recipe.options) * in * out;
    }
    ++plan.modules;
    plan.weights += int64_t(in * out);
    bits += per_weight * in * out;
    if (const StoredTensor* tensor = source.find(layer.name + ".weight")) plan.output_bytes -= tensor->bytes;
    plan.output_bytes += uint64_t(per_weight * in * out / 8 + in * 4);
    const double rows = recipe.compensation == Compensation::position ? double(length)
                        : recipe.compensation == Compensation::token  ? 1
                                                                      : 0;
    plan.output_bytes += uint64_t(2 * rows * out);
    plan.journal_bytes += uint64_t(per_weight * in * out / 8 + 4 * out);
    plan.journal_bytes += uint64_t(4 * rows * out);
    plan.gigaflops += 2e-9 * in * in * (2 * out + in / 3);
    largest_layer = std::max(largest_layer, uint64_t(in * out));
    largest_input = std::max(largest_input, uint64_t(in));
  };
  // All blocks have the shape of the first.
  {
    const std::unique_ptr<nn::Block> block = model.make_block(0);
    block_bytes = uint64_t(block->bytes());
    const std::string first = ".0.";
    for (int64_t index = 0; index < model.facts().layers; ++index)
      for (const auto& branch : block->branches) {
        std::vector<nn::Linear*> layers = branch->expand();
        layers.push_back(&branch->contract());
        for (nn::Linear* layer : layers) {
          const std::string original = layer->name;
          const size_t at = original.find(first);
          if (at != std::string::npos)
            layer->name = original.substr(0, at) + str(".", index, ".") + original.substr(at + first.size());
          count(*layer, recipe.grid_for(layer->name, layer->in_features()),
                layer != layers.front() && layer != layers.back());
          layer->name = original;
        }
      }
  }
  if (recipe.head_bits || recipe.target_bits > 0) {
    const nn::Linear& head = model.lm_head();
    GridOptions grid = recipe.head_grid(head.name, head.in_features());
    if (!recipe.head_bits) grid.bits = recipe.grid.bits;
    count(head, grid, false);
  }
  plan.journal_bytes += uint64_t(tokens * 4);
  plan.bits_per_weight = plan.weights > 0 ? bits / double(plan.weights) : 0;
  if (recipe.target_bits * double(plan.weights) * (1 + 1e-12) < least_bits)
    throw Error(str("--target-bits is ", recipe.target_bits, ", but the smallest widths already take ",
                    least_bits / double(plan.weights), " bits per weight with their scales and zero points"));
  for (size_t i = 0; i < matched.size(); ++i)
    if (!matched[i]) plan.unmatched.push_back(recipe.overrides[i].pattern);
  plan.peak_memory_bytes = stream_bytes(model.facts(), recipe, samples, length) +
                           largest_input * largest_input * matrix_bytes_per_element(recipe) +
                           // Weights, the walk's copy or the difference, codes and what is being written.
                           largest_layer * (recipe.correlates_inputs() ? 18 : 10) +
                           // Panels of the walk and of the error's products, 1536 rows of f32.
                           largest_input * 4 * 1536 + block_bytes * (recipe.keeps_reference() ? 2 : 1) +
                           uint64_t(model.lm_head().bytes()) +
                           uint64_t(model.facts().max_positions * model.facts().hidden) * 2 + kProgramBytes;
  return plan;
}

}  // namespace ballast
