#include "quantize/quantizer.h"

#include <array>
#include <chrono>
#include <cmath>

#include "engine/core/process.h"
#include "engine/io/packed.h"
#include "quantize/calibration.h"
#include "quantize/methods.h"
#include "quantize/output.h"
#include "quantize/stages/bias_compensation.h"

namespace ballast {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

class Quantizer {
 public:
  explicit Quantizer(const QuantizeJob& job)
      : job_(job),
        method_(method_named(job.recipe.method)),
        output_(job.source, job.writer, job.recipe),
        stream_(job.backend, job.model, job.tokens) {
    if (job.recipe.correct_drift) reference_.emplace(job.backend, job.model, job.tokens);
    if (job.recipe.compensation == Compensation::position) positions_ = job.tokens.length;
    report_.recipe = job.recipe;
    report_.calibration = job.tokens.source;
    report_.calibration_hash = job.tokens.hash();
    report_.samples = job.tokens.samples;
    report_.length = job.tokens.length;
  }

  QuantizeReport run();

 private:
  void quantize_block(int64_t index);
  void quantize_head();
  std::vector<Statistics> observe_whole(nn::Block& block);
  Statistics gather(nn::Branch& branch, bool contract);
  std::array<Statistics, 2> advance_reference(nn::Branch& branch);
  void quantize_layers(const std::vector<nn::Linear*>& layers, Statistics input, const Statistics* reference,
                       bool in_block);
  void quantize_layer(nn::Linear& layer, LayerInput& shared, const Statistics& input,
                      const Statistics* reference, bool in_block);
  std::vector<float> float_weight(const nn::Linear& layer) const;
  void compensate_layer(nn::Linear& layer, const CompensationResult& result, bool in_block);

  const QuantizeJob& job_;
  const Method& method_;
  QuantizedOutput output_;
  HiddenStream stream_;
  std::optional<HiddenStream> reference_;
  StoredRows kept_inputs_;  ///< [rows, width], or empty: inputs of the branch's contract layer
  int64_t positions_ = 0;
  bool biases_added_ = false;
  int64_t done_ = 0, total_ = 0;
  QuantizeReport report_;
};

QuantizeReport Quantizer::run() {
  const Clock::time_point start = Clock::now();
  total_ = job_.model.facts().layers * 6 + (job_.recipe.head_bits ? 1 : 0);
  for (int64_t index = 0; index < job_.model.facts().layers; ++index) quantize_block(index);
  if (job_.recipe.head_bits) quantize_head();
  output_.finish(report_, biases_added_);
  report_.output_bytes = output_.tensor_bytes();
  job_.source.check_intact();
  report_.seconds = seconds_since(start);
  report_.peak_memory_bytes = peak_memory_bytes();
  return report_;
}

Statistics Quantizer::gather(nn::Branch& branch, bool contract) {
  const nn::Linear& layer = contract ? branch.contract() : *branch.expand().front();
  Statistics statistics(layer.in_features(), positions_, true);
  StatisticsObserver observer(
      job_.backend, [&](const nn::Linear& seen) { return &seen == &layer ? &statistics : nullptr; });
  stream_.for_each_part(&observer, [&](const HiddenStream::Part& part) {
    const TensorView x = branch.expand_input(part.context, part.hidden);
    if (!contract) return;
    const TensorView u = branch.contract_input(part.context, x);
    if (kept_inputs_) kept_inputs_.store(job_.backend, part.first_row, u);
  });
  return statistics;
}

// The float weights do not change on the way, so one pass sees both inputs and moves the reference stream on.
std::array<Statistics, 2> Quantizer::advance_reference(nn::Branch& branch) {
  const nn::Linear *expand = branch.expand().front(), *contract = &branch.contract();
  std::array<Statistics, 2> means{Statistics(expand->in_features(), positions_, false),
                                  Statistics(contract->in_features(), positions_, false)};
  StatisticsObserver observer(job_.backend, [&](const nn::Linear& seen) {
    return &seen == expand ? &means[0] : &seen == contract ? &means[1] : nullptr;
  });
  reference_->for_each_part(
      &observer, [&](const HiddenStream::Part& part) { branch.forward(part.context, part.hidden); });
  return means;
}

// The paper's way: every layer of the block sees what the unquantized block computes from the quantized
// prefix.
std::vector<Statistics> Quantizer::observe_whole(nn::Block& block) {
  std::vector<Statistics> inputs;
  std::vector<const nn::Linear*> layers;
  for (const auto& branch : block.branches)
    for (const nn::Linear* layer : {static_cast<const nn::Linear*>(branch->expand().front()),
                                    static_cast<const nn::Linear*>(&branch->contract())}) {
      layers.push_back(layer);
      inputs.emplace_back(layer->in_features(), positions_, true);
    }
  StatisticsObserver observer(job_.backend, [&](const nn::Linear& seen) -> Statistics* {
    for (size_t i = 0; i < layers.size(); ++i)
      if (layers[i] == &seen) return &inputs[i];
    return nullptr;
  });
  stream_.for_each_part(&observer, [&](const HiddenStream::Part& part) {
    const OutputView copy = part.context.workspace.floats(part.hidden.shape);
    job_.backend.copy_to_device(copy.as<void>(), part.hidden.data, part.hidden.bytes());
    for (const auto& branch : block.branches) branch->forward(part.context, copy);
  });
  return inputs;
}

void Quantizer::quantize_block(int64_t index) {
  const std::unique_ptr<nn::Block> block = job_.model.make_block(index);
  const std::unique_ptr<nn::Block> float_block = reference_ ? job_.model.make_block(index) : nullptr;
  std::vector<Statistics> whole;
  if (job_.recipe.one_pass) whole = observe_whole(*block);
  for (size_t i = 0; i < block->branches.size(); ++i) {
    nn::Branch& branch = *block->branches[i];
    const int64_t width = branch.contract().in_features();
    // Without a reference stream its room holds the contract layer's inputs where they are no wider:
    // attention, the dearest part, then runs once.
    if (!reference_ && !job_.recipe.one_pass && width <= job_.model.facts().hidden)
      kept_inputs_ = StoredRows(job_.backend, stream_.rows(), width);
    std::optional<std::array<Statistics, 2>> float_means;
    if (float_block) float_means = advance_reference(*float_block->branches[i]);
    for (const bool contract : {false, true}) {
      const std::vector<nn::Linear*> layers = contract ? std::vector{&branch.contract()} : branch.expand();
      Statistics input =
          job_.recipe.one_pass ? std::move(whole[2 * i + size_t(contract)]) : gather(branch, contract);
      quantize_layers(layers, std::move(input), float_means ? &(*float_means)[size_t(contract)] : nullptr,
                      true);
    }
    stream_.for_each_part(nullptr, [&](const HiddenStream::Part& part) {
      if (!kept_inputs_) return branch.forward(part.context, part.hidden);
      const OutputView u = part.context.workspace.floats({part.hidden.shape[0], width});
      kept_inputs_.load(job_.backend, part.first_row, u);
      branch.finish(part.context, u, part.hidden);
    });
    kept_inputs_ = StoredRows();
  }
}

void Quantizer::quantize_head() {
  nn::Linear& head = job_.model.lm_head();
  const auto input_of_head = [&](HiddenStream& stream, bool moments) {
    Statistics statistics(head.in_features(), 0, moments);
    StatisticsObserver observer(
        job_.backend, [&](const nn::Linear& seen) { return &seen == &head ? &statistics : nullptr; });
    stream.for_each_part(
        &observer, [&](const HiddenStream::Part& part) { job_.model.head_input(part.context, part.hidden); });
    return statistics;
  };
  Statistics input = input_of_head(stream_, true);
  std::optional<Statistics> reference;
  if (reference_) reference = input_of_head(*reference_, false);
  quantize_layers({&head}, std::move(input), reference ? &*reference : nullptr, false);
}

void Quantizer::quantize_layers(const std::vector<nn::Linear*>& layers, Statistics input,
                                const Statistics* reference, bool in_block) {
  LayerInput shared(
      job_.backend, activation_curvature(std::move(input), job_.recipe.compensation == Compensation::joint),
      {.damping = job_.recipe.damping, .act_order = job_.recipe.act_order}, layers.front()->name);
  for (nn::Linear* layer : layers) {
    quantize_layer(*layer, shared, input, reference, in_block);
    job_.progress({++done_, total_, layer->name});
  }
}

std::vector<float> Quantizer::float_weight(const nn::Linear& layer) const {
  std::vector<float> weight;
  if (has_packed_weight(job_.source, layer.name)) {
    const AffineMatrix matrix =
        read_packed(job_.source, layer.name, layer.out_features(), layer.in_features());
    weight.resize(matrix.codes.size());
    for (int64_t row = 0; row < matrix.out_features; ++row)
      matrix.decode_row(row, weight.data() + row * matrix.in_features);
  } else {
    const StoredTensor& tensor = job_.source.require(layer.name + ".weight");
    weight = job_.source.floats(tensor);
    job_.source.release(tensor);
  }
  for (size_t i = 0; i < weight.size(); ++i)
    if (!std::isfinite(weight[i]))
      throw Error(str(layer.name, ".weight: element [", int64_t(i) / layer.in_features(), ", ",
                      int64_t(i) % layer.in_features(), "] is ", weight[i],
                      "; a model with non-finite weights cannot be quantized"));
  return weight;
}

void Quantizer::quantize_layer(nn::Linear& layer, LayerInput& shared, const Statistics& input,
                               const Statistics* reference, bool in_block) {
  const Clock::time_point start = Clock::now();
  const int64_t in = layer.in_features();
  const GridOptions grid =
      in_block ? job_.recipe.grid_for(layer.name, in) : job_.recipe.head_grid(layer.name, in);
  if (grid.bits == 0) {
    report_.kept_float.push_back(layer.name);
    return;
  }
  const std::vector<float> weight = float_weight(layer);
  LayerSolution solution;
  try {
    solution =
        method_.solve(job_.backend, {.name = layer.name,
                                     .out_features = layer.out_features(),
                                     .in_features = in,
                                     .weight = weight,
                                     .grid = grid,
                                     .static_groups = job_.recipe.static_groups || job_.recipe.act_order,
                                     .input = &shared});
  } catch (const Error& error) {
    const std::string what = error.what();
    throw Error(what.starts_with(layer.name) ? what : layer.name + ": " + what);
  }
  const CompensationResult result =
      compensate(job_.backend, weight, solution.matrix, input, reference, job_.recipe.compensation,
                 [&](std::span<const float> a) { return shared.output_power(a); });
  output_.add_matrix(layer.name, solution.matrix);
  compensate_layer(layer, result, in_block);
  report_.layers.push_back({.name = layer.name,
                            .out_features = layer.out_features(),
                            .in_features = in,
                            .bits = grid.bits,
                            .group_size = grid.group_size,
                            .bits_per_weight = bits_per_weight(solution.matrix),
                            .error_before = result.error_before,
                            .error_after = result.error_after,
                            .damping = solution.damping,
                            .seconds = seconds_since(start)});
  if (in_block) layer.weight = Weight::quantized(job_.backend, solution.matrix);
}

void Quantizer::compensate_layer(nn::Linear& layer, const CompensationResult& result, bool in_block) {
  if (job_.recipe.compensation == Compensation::none) return;
  const int64_t out = layer.out_features();
  const bool had_bias = bool(layer.bias);
  std::vector<float> bias = had_bias ? layer.bias.to_floats() : std::vector<float>(size_t(out));
  for (int64_t r = 0; r < out; ++r) bias[size_t(r)] += result.channel[size_t(r)];
  bias = output_.stored(layer.name, std::move(bias));
  // Only the six layers of a block can hold a bias in the published configuration.
  output_.add_vector(layer.name, in_block ? ".bias" : ".compensation", bias, {out});
  biases_added_ |= in_block && !had_bias;
  if (!in_block) return;
  layer.bias = Tensor::from_floats(job_.backend, bias, {out});
  if (result.position.empty()) return;
  const std::vector<float> table = output_.stored(layer.name, result.position);
  output_.add_vector(layer.name, ".position_compensation", table, {result.positions, out});
  layer.position_bias = Tensor::from_floats(job_.backend, table, {result.positions, out});
}

}  // namespace

QuantizeReport quantize_model(const QuantizeJob& job) {
  job.recipe.check();
  return Quantizer(job).run();
}

}  // namespace ballast
