#include "quantize/quantizer.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "engine/core/process.h"
#include "engine/io/quantized.h"
#include "quantize/activation_sites.h"
#include "quantize/calibration.h"
#include "quantize/gptaq.h"
#include "quantize/gradient_statistics.h"
#include "quantize/methods.h"
#include "quantize/output.h"
#include "quantize/records.h"
#include "quantize/source_weight.h"
#include "quantize/stages/bias_compensation.h"
#include "quantize/target.h"
#include "quantize/tuning.h"

namespace ballast {
namespace {

using Clock = std::chrono::steady_clock;
double outlier_share(const QuantizedMatrix& matrix) {
  const auto* sparse = std::get_if<SparseOutlierMatrix>(&matrix);
  return sparse ? double(sparse->outlier_values.size()) / double(sparse->codes.size()) : 0;
}

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

class Quantizer {
 public:
  explicit Quantizer(const QuantizeJob& job)
      : job_(job), method_(method_named(job.recipe.method)), output_(job.source, job.writer, job.recipe) {
    // With every module in the journal there is nothing left to calibrate.
    if (!job.journal || !job.journal->contains(kAllLayers)) {
      stream_.emplace(job.backend, job.model, job.tokens);
      if (job.recipe.keeps_reference()) reference_.emplace(job.backend, job.model, job.tokens);
    }
    if (job.recipe.activation_bits > 0)
      chooser_.emplace(job.backend, job.model, job.journal, job.recipe);
    if (job.recipe.compensation == Compensation::position) positions_ = job.tokens.length;
    if (job.recipe.compensation == Compensation::token) positions_ = 1;
    report_.recipe = job.recipe;
    report_.calibration = job.tokens.source;
    report_.calibration_hash = job.tokens.hash();
    report_.views = job.tokens.images.views;
    report_.samples = job.tokens.samples / report_.views;
    report_.length = job.tokens.length;
  }

  QuantizeReport run();

 private:
  void quantize_block(int64_t index);
  void quantize_head();
  InputMoments empty_moments(int64_t features) const;
  template <class Body>
  void side_by_side(const Body& body);
  void add(InputMoments& moments, const HiddenStream::Part& part, const TensorView& x,
           const TensorView& x_float);
  bool repeats_class_tokens() const;
  // What class tokens weigh beyond 1, as rows of their own.
  OutputView class_tokens(const HiddenStream::Part& part, const TensorView& rows) const {
    return repeated_rows(job_.backend, part.context.workspace, rows, job_.model.facts().image->tokens, job_.recipe.class_weight - 1);
  }
  void add_residual(InputMoments& moments, const HiddenStream::Part& part, const TensorView& x,
                    const TensorView& hidden, const TensorView& hidden_float);
  std::vector<InputMoments> observe_whole(nn::Block& block, nn::Block* float_block);
  InputMoments gather(nn::Branch& branch, nn::Branch* float_branch, bool contract);
  bool keeps_inputs(nn::Branch& branch) const;
  void advance(nn::Branch& branch);
  void advance_reference(nn::Block* float_block, size_t begin, size_t end);
  GridOptions grid_of(const nn::Linear& layer, bool in_block) const;
  /// True if none of `layers` is left to be solved: their input need not be seen.
  bool settled(const std::vector<nn::Linear*>& layers, bool in_block) const;
  HiddenStream* stream() { return stream_ ? &*stream_ : nullptr; }
  /// Those of `layers` that an override leaves in float.
  std::vector<nn::Linear*> kept_float(const std::vector<nn::Linear*>& layers) const;
  void settle_sites(nn::Branch& branch, nn::Branch* float_branch, bool contract,
                    const std::vector<nn::Linear*>& layers);
  void install_settled(const std::vector<nn::Linear*>& layers, bool in_block);
  void quantize_layers(const std::vector<nn::Linear*>& layers, InputMoments moments, bool in_block);
  void gather_block_gradients(int64_t first);
  std::vector<LayerInput> gradient_inputs(const nn::Linear& layer) const;
  LayerSolution solve_rows(LayerProblem problem, LayerInput& shared, std::vector<LayerInput> inputs) const;
  LayerRecord solve(const nn::Linear& layer, LayerInput& shared, const InputMoments& moments,
                    const std::optional<DriftMoments>& drift, const std::optional<DriftFeedback>& feedback,
                    bool in_block);
  void install(nn::Linear& layer, LayerRecord record, bool in_block);
  void write(const LayerRecord& record, bool in_block);
  void tell_progress(const nn::Linear& layer);

  const QuantizeJob& job_;
  const Method& method_;
  QuantizedOutput output_;
  std::optional<HiddenStream> stream_;  ///< empty when no module is left to be solved
  std::optional<HiddenStream> reference_;
  StoredRows kept_inputs_;  ///< [rows, width], or empty: inputs of the branch's contract layer
  std::optional<ActivationChooser> chooser_;     ///< where activations are quantized
  std::optional<GradientStatistics> gradients_;  ///< of the block at hand, where the curvature wants them
  int64_t positions_ = 0;
  bool biases_added_ = false;
  std::vector<LayerRecord> untuned_;  ///< layers of the blocks that are written when they have been tuned
  QuantizeProgress progress_;
  QuantizeReport report_;
};

QuantizeReport Quantizer::run() {
  const Clock::time_point start = Clock::now();
  progress_.total = job_.model.facts().layers * 6 + (job_.recipe.head_bits ? 1 : 0);
  for (int64_t index = 0; index < job_.model.facts().layers; ++index) quantize_block(index);
  if (job_.recipe.head_bits) quantize_head();
  if (job_.recipe.tune_epochs > 0) {
    reference_.reset();
    gradients_.reset();
    const TuningResult result = tune(job_.backend, job_.model, job_.tokens, untuned_, chooser_ ? &*chooser_ : nullptr,
                                     {.epochs = job_.recipe.tune_epochs, .code_rate = job_.recipe.tune_codes, .hidden_weight = job_.recipe.tune_hidden}, [&](int64_t done, int64_t all) {
                                       QuantizeProgress at = progress_;
                                       at.module = str("tuning, step ", done, " of ", all);
                                       job_.progress(at);
                                     });
    report_.tuning_before = result.before;
    report_.tuning_after = result.after;
    report_.tuning_codes_moved = result.codes_moved;
    for (LayerRecord& record : untuned_) {
      record.bias = output_.stored(record.report.name, std::move(record.bias));
      write(record, true);
    }
  }
  if (job_.journal && stream_) job_.journal->append(kAllLayers, {});
  output_.finish(report_, biases_added_);
  report_.output_bytes = output_.tensor_bytes();
  job_.source.check_intact();
  report_.seconds = seconds_since(start);
  report_.peak_memory_bytes = peak_memory_bytes();
  return report_;
}

InputMoments Quantizer::empty_moments(int64_t features) const {
  InputMoments moments{Statistics(features, positions_, true), Statistics(features, std::min<int64_t>(positions_, 1), false)};
  if (job_.recipe.correlates_inputs()) moments.drift.resize(size_t(features * features));
  return moments;
}

// Calls body(part, reference) for every part of the stream; `reference` is the same part of the float stream, or null
// where none is kept.
template <class Body>
void Quantizer::side_by_side(const Body& body) {
  using Part = HiddenStream::Part;
  for (int64_t index = 0; index < stream_->parts(); ++index)
    stream_->with_part(index, [&](const Part& part) {
      if (!reference_) return body(part, static_cast<const Part*>(nullptr));
      reference_->with_part(index, [&](const Part& reference) { body(part, &reference); });
    });
}

// x_float: the same tokens' input in the float model, or empty.
void Quantizer::add(InputMoments& moments, const HiddenStream::Part& part, const TensorView& x,
                    const TensorView& x_float) {
  const bool all_tokens = x.shape[0] == part.context.batch.tokens();
  // Of an image the head reads one row, that of its first token.
  std::vector<int32_t> first(all_tokens ? 0 : size_t(x.shape[0]));
  const TensorView positions =
      all_tokens ? part.context.batch.positions : TensorView(first.data(), DType::i32, {x.shape[0]});
  const auto add_rows = [&](const TensorView& at, const TensorView& here, const TensorView& here_float) {
    moments.quantized.add(job_.backend, here, at);
    if (!here_float) return;
    moments.reference.add(job_.backend, here_float, at);
    if (!moments.drift.empty())
      add_drift(job_.backend, part.context.workspace, here, here, here_float,
                moments.drift_there.place(job_.backend, moments.drift));
  };
  add_rows(positions, x, x_float);
  if (!repeats_class_tokens() || !all_tokens) return;
  Workspace::Scope scope(part.context.workspace);
  const OutputView repeated = class_tokens(part, x);
  first.resize(size_t(repeated.shape[0]));
  add_rows({first.data(), DType::i32, {repeated.shape[0]}}, repeated,
           x_float ? TensorView(class_tokens(part, x_float)) : TensorView());
}

bool Quantizer::repeats_class_tokens() const {
  return job_.model.facts().image && job_.recipe.class_weight > 1;
}

// What the residual stream has lost, seen together with the input of the layer that adds to it.
void Quantizer::add_residual(InputMoments& moments, const HiddenStream::Part& part, const TensorView& x,
                             const TensorView& hidden, const TensorView& hidden_float) {
  if (!job_.recipe.asymmetric) return;
  const int64_t width = hidden.shape[1];
  if (moments.residual_sum.empty()) {
    moments.residual_sum.resize(size_t(width));
    moments.residual_first.resize(size_t(width));
    moments.residual.resize(size_t(width * x.shape[1]));
  }
  const auto add_rows = [&](const TensorView& input, const TensorView& here, const TensorView& here_float) {
    add_lost(job_.backend, here, here_float, 1, moments.residual_sum);
    add_drift(job_.backend, part.context.workspace, input, here, here_float,
              moments.residual_there.place(job_.backend, moments.residual));
  };
  add_rows(x, hidden, hidden_float);
  const double weight = double(repeats_class_tokens() ? job_.recipe.class_weight : 1);
  for (const AttentionSpan& span : part.context.batch.spans)
    add_lost(job_.backend, hidden.rows(span.first_row, 1), hidden_float.rows(span.first_row, 1), weight, moments.residual_first);
  if (!repeats_class_tokens()) return;
  Workspace::Scope scope(part.context.workspace);
  add_rows(class_tokens(part, x), class_tokens(part, hidden), class_tokens(part, hidden_float));
}

// The input that the expand layers share, or the contract layer's. The reference stream needs no quantized
// layer, so it is moved on as soon as its last input has been seen.
InputMoments Quantizer::gather(nn::Branch& branch, nn::Branch* float_branch, bool contract) {
  const auto input_of = [contract](nn::Branch& which, const HiddenStream::Part& part) {
    const TensorView x = which.expand_input(part.context, part.hidden);
    return contract ? which.contract_input(part.context, x) : x;
  };
  const nn::Linear& layer = contract ? branch.contract() : *branch.expand().front();
  InputMoments moments = empty_moments(layer.in_features());
  side_by_side([&](const HiddenStream::Part& part, const HiddenStream::Part* reference) {
    const TensorView x = input_of(branch, part);
    if (contract && kept_inputs_) kept_inputs_.store(job_.backend, part.first_row, x);
    const TensorView read = nn::rounded(part.context, layer.input_grid, x);
    if (!reference) return add(moments, part, read, {});
    const TensorView x_float = input_of(*float_branch, *reference);
    add(moments, part, read, x_float);
    if (!contract) return;
    add_residual(moments, part, read, part.hidden, reference->hidden);
    float_branch->finish(reference->context, x_float, reference->hidden);
  });
  return moments;
}

// The paper's way: every layer of the block sees what the unquantized block computes from the quantized
// prefix. Two entries per branch: the expand layers' input and the contract layer's.
std::vector<InputMoments> Quantizer::observe_whole(nn::Block& block, nn::Block* float_block) {
  std::vector<InputMoments> all;
  for (const auto& branch : block.branches) {
    all.push_back(empty_moments(branch->expand().front()->in_features()));
    all.push_back(empty_moments(branch->contract().in_features()));
  }
  side_by_side([&](const HiddenStream::Part& part, const HiddenStream::Part* reference) {
    const OutputView hidden = part.context.workspace.floats(part.hidden.shape);
    job_.backend.copy_to_device(hidden.as<void>(), part.hidden.data, part.hidden.bytes());
    for (size_t i = 0; i < block.branches.size(); ++i) {
      nn::Branch& branch = *block.branches[i];
      const TensorView x = branch.expand_input(part.context, hidden);
      const TensorView u = branch.contract_input(part.context, x);
      TensorView x_float, u_float;
      if (reference) {
        nn::Branch& float_branch = *float_block->branches[i];
        x_float = float_branch.expand_input(reference->context, reference->hidden);
        u_float = float_branch.contract_input(reference->context, x_float);
      }
      add(all[2 * i], part, x, x_float);
      add(all[2 * i + 1], part, u, u_float);
      if (reference) {
        add_residual(all[2 * i + 1], part, u, hidden, reference->hidden);
        float_block->branches[i]->finish(reference->context, u_float, reference->hidden);
      }
      branch.finish(part.context, u, hidden);
    }
  });
  return all;
}

// Without a reference stream its room holds the contract layer's inputs where they are no wider: attention, the
// dearest part, then runs once.
bool Quantizer::keeps_inputs(nn::Branch& branch) const {
  return !reference_ && !job_.recipe.one_pass && branch.contract().in_features() <= job_.model.facts().hidden;
}

// The stream through one branch whose layers are all done. Inputs that are kept have been rounded; where none
// were gathered, as on resuming, they are rounded here, so that the stream has the same bits either way.
void Quantizer::advance(nn::Branch& branch) {
  if (!stream_) return;
  const bool gathered = bool(kept_inputs_);
  if (keeps_inputs(branch) && !gathered)
    kept_inputs_ = StoredRows(job_.backend, stream_->rows(), branch.contract().in_features());
  stream_->for_each_part([&](const HiddenStream::Part& part) {
    if (!kept_inputs_) return branch.forward(part.context, part.hidden);
    if (!gathered)
      kept_inputs_.store(job_.backend, part.first_row,
                         branch.contract_input(part.context, branch.expand_input(part.context, part.hidden)));
    const OutputView u = part.context.workspace.floats({part.hidden.shape[0], kept_inputs_.width()});
    kept_inputs_.load(job_.backend, part.first_row, u);
    branch.finish(part.context, u, part.hidden);
  });
  kept_inputs_ = StoredRows();
}

// The reference stream through the branches [begin, end) of a block, whose inputs need not be seen. One pass, as
// where they are: each pass rounds what it leaves.
void Quantizer::advance_reference(nn::Block* float_block, size_t begin, size_t end) {
  if (!float_block) return;
  reference_->for_each_part([&](const HiddenStream::Part& part) {
    for (size_t i = begin; i < end; ++i) float_block->branches[i]->forward(part.context, part.hidden);
  });
}

void Quantizer::quantize_block(int64_t index) {
  const std::unique_ptr<nn::Block> block = job_.model.make_block(index);
  const std::unique_ptr<nn::Block> float_block = reference_ ? job_.model.make_block(index) : nullptr;
  const auto layers_of = [](nn::Branch& branch, bool contract) {
    return contract ? std::vector{&branch.contract()} : branch.expand();
  };
  const bool block_settled = std::all_of(
      block->branches.begin(), block->branches.end(), [&](const std::unique_ptr<nn::Branch>& branch) {
        return settled(layers_of(*branch, false), true) && settled(layers_of(*branch, true), true);
      });
  if (!block_settled) gather_block_gradients(index);
  if (chooser_) chooser_->begin_block(stream(), index, *block);
  std::vector<InputMoments> whole;
  if (job_.recipe.one_pass && !block_settled) whole = observe_whole(*block, float_block.get());
  if (job_.recipe.one_pass && block_settled) advance_reference(float_block.get(), 0, block->branches.size());
  for (size_t i = 0; i < block->branches.size(); ++i) {
    nn::Branch& branch = *block->branches[i];
    nn::Branch* const float_branch = float_block ? float_block->branches[i].get() : nullptr;
    for (const bool contract : {false, true}) {
      const std::vector<nn::Linear*> layers = layers_of(branch, contract);
      if (chooser_) settle_sites(branch, float_branch, contract, layers);
      if (settled(layers, true)) {
        install_settled(layers, true);
        if (contract && !job_.recipe.one_pass) advance_reference(float_block.get(), i, i + 1);
        continue;
      }
      if (contract && keeps_inputs(branch))
        kept_inputs_ = StoredRows(job_.backend, stream_->rows(), branch.contract().in_features());
      quantize_layers(layers,
                      job_.recipe.one_pass ? std::move(whole[2 * i + size_t(contract)])
                                           : gather(branch, float_branch, contract),
                      true);
    }
    advance(branch);
  }
}

void Quantizer::quantize_head() {
  nn::Linear& head = job_.model.lm_head();
  if (chooser_) output_.add_sites(chooser_->settle_head(stream()));
  if (settled({&head}, false)) return install_settled({&head}, false);
  gather_block_gradients(job_.model.facts().layers);
  InputMoments moments = empty_moments(head.in_features());
  side_by_side([&](const HiddenStream::Part& part, const HiddenStream::Part* reference) {
    const TensorView x = job_.model.head_input(part.context, part.hidden);
    add(moments, part, nn::rounded(part.context, head.input_grid, x),
        reference ? job_.model.head_input(reference->context, reference->hidden) : TensorView());
  });
  quantize_layers({&head}, std::move(moments), false);
}

// Gradients are taken where the quantized prefix ends, of the block and all behind it in float.
void Quantizer::gather_block_gradients(int64_t first) {
  const Recipe& recipe = job_.recipe;
  if (recipe.curvature == CurvatureKind::activation) return;
  const bool guided = recipe.curvature == CurvatureKind::guided, head = first == job_.model.facts().layers;
  gradients_ = gather_gradients(
      {.backend = job_.backend,
       .model = job_.model,
       .stream = *stream_,
       .first = first,
       .observed = head ? 0 : 1,
       .head = head,
       .kinds = {.output_adaptive = !guided,
                 .guided_groups = guided ? (method_.one_curvature ? 1 : recipe.curvature_groups) : 0}});
  if (!head) job_.model.unload_block(first);
}

// One for each run of rows that has a curvature of its own; none where the inputs' own moments serve.
std::vector<LayerInput> Quantizer::gradient_inputs(const nn::Linear& layer) const {
  std::vector<LayerInput> inputs;
  const LayerGradients* gradients = gradients_ ? gradients_->find(layer.name) : nullptr;
  if (!gradients) return inputs;
  const FactorOptions options{.damping = job_.recipe.damping, .act_order = job_.recipe.act_order};
  const bool centred = job_.recipe.centres_inputs();
  const auto add = [&](const ExtendedMoment& moment) {
    inputs.emplace_back(job_.backend, moment.curvature(centred), options, layer.name);
  };
  if (job_.recipe.curvature == CurvatureKind::output_adaptive)
    add(gradients->output_adaptive);
  else
    for (const ExtendedMoment& moment : gradients->guided) add(moment);
  return inputs;
}

LayerSolution Quantizer::solve_rows(LayerProblem problem, LayerInput& shared,
                                    std::vector<LayerInput> inputs) const {
  if (inputs.size() <= 1) {
    problem.input = inputs.empty() ? &shared : &inputs.front();
    return method_.solve(job_.backend, problem);
  }
  const std::span<const float> weight = problem.weight;
  const int64_t rows = problem.out_features, groups = int64_t(inputs.size());
  std::optional<LayerSolution> all;
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t first = group * rows / groups, last = (group + 1) * rows / groups;
    problem.weight =
        weight.subspan(size_t(first * problem.in_features), size_t((last - first) * problem.in_features));
    problem.out_features = last - first;
    problem.input = &inputs[size_t(group)];
    LayerSolution part = method_.solve(job_.backend, problem);
    if (!all) {
      all = std::move(part);
    } else {
      append_rows(all->matrix, part.matrix);
      all->damping = std::max(all->damping, part.damping);
    }
  }
  return std::move(*all);
}

void Quantizer::quantize_layers(const std::vector<nn::Linear*>& layers, InputMoments moments, bool in_block) {
  const bool centred = job_.recipe.centres_inputs();
  moments.settle(job_.backend);
  std::optional<DriftMoments> drift;
  if (job_.recipe.correlates_inputs()) drift = drift_moments(moments, centred);
  LayerInput shared(job_.backend, activation_curvature(std::move(moments.quantized), centred),
                    {.damping = job_.recipe.damping, .act_order = job_.recipe.act_order},
                    layers.front()->name);
  std::optional<DriftFeedback> feedback;
  if (job_.recipe.gptaq > 0) feedback.emplace(job_.backend, *drift, shared.factor(), job_.recipe.gptaq);
  for (nn::Linear* layer : layers) {
    if (settled({layer}, in_block)) {
      install_settled({layer}, in_block);
      continue;
    }
    LayerRecord record = solve(*layer, shared, moments, drift, feedback, in_block);
    if (job_.journal) job_.journal->append(layer_key(layer->name), to_bytes(record));
    install(*layer, std::move(record), in_block);
  }
}

GridOptions Quantizer::grid_of(const nn::Linear& layer, bool in_block) const {
  return in_block ? job_.recipe.grid_for(layer.name, layer.in_features())
                  : job_.recipe.head_grid(layer.name, layer.in_features());
}

bool Quantizer::settled(const std::vector<nn::Linear*>& layers, bool in_block) const {
  return std::all_of(layers.begin(), layers.end(), [&](const nn::Linear* layer) {
    return grid_of(*layer, in_block).bits == 0 ||
           (job_.journal && job_.journal->contains(layer_key(layer->name)));
  });
}

std::vector<nn::Linear*> Quantizer::kept_float(const std::vector<nn::Linear*>& layers) const {
  std::vector<nn::Linear*> kept;
  for (nn::Linear* layer : layers)
    if (grid_of(*layer, true).bits == 0) kept.push_back(layer);
  return kept;
}

void Quantizer::settle_sites(nn::Branch& branch, nn::Branch* float_branch, bool contract,
                             const std::vector<nn::Linear*>& layers) {
  output_.add_sites(chooser_->settle(stream(), branch, float_branch, contract, kept_float(layers)));
  if (contract || !chooser_->fold_of(layers.front()->name)) return;
  const int64_t width = layers.front()->in_features();
  output_.add_vector(branch.norm.name, ".weight", branch.norm.weight.to_floats(), {width});
  output_.add_vector(branch.norm.name, ".bias", branch.norm.bias.to_floats(), {width});
}

void Quantizer::install_settled(const std::vector<nn::Linear*>& layers, bool in_block) {
  for (nn::Linear* layer : layers) {
    if (grid_of(*layer, in_block).bits == 0) {
      report_.kept_float.push_back(layer->name);
      tell_progress(*layer);
      continue;
    }
    const std::string key = layer_key(layer->name);
    ++progress_.resumed;
    install(*layer, layer_from_bytes(*job_.journal->find(key), key), in_block);
  }
}

void Quantizer::tell_progress(const nn::Linear& layer) {
  ++progress_.done;
  progress_.module = layer.name;
  job_.progress(progress_);
}

LayerRecord Quantizer::solve(const nn::Linear& layer, LayerInput& shared, const InputMoments& moments,
                             const std::optional<DriftMoments>& drift,
                             const std::optional<DriftFeedback>& feedback, bool in_block) {
  const Clock::time_point start = Clock::now();
  const int64_t in = layer.in_features();
  const GridOptions grid = grid_of(layer, in_block);
  std::vector<float> weight = source_weight(job_.source, layer);
  if (const RangeFold* fold = chooser_ ? chooser_->fold_of(layer.name) : nullptr) fold_weight(*fold, weight);
  std::vector<float> target;
  if (drift) target = asymmetric_target(job_.backend, weight, *drift, shared.factor());
  LayerProblem problem{.name = layer.name,
                       .out_features = layer.out_features(),
                       .in_features = in,
                       .weight = target.empty() ? weight : target,
                       .grid = grid,
                       .static_groups = job_.recipe.static_groups || job_.recipe.act_order,
                       .options = job_.recipe.options};
  std::vector<LayerInput> inputs = gradient_inputs(layer);
  std::vector<float> fed_back;
  if (feedback) {
    fed_back = feedback->target(job_.backend, weight);
    problem.weight = fed_back;
    inputs.emplace_back(job_.backend, feedback->factor(), shared.options(), layer.name);
  }
  LayerSolution solution;
  try {
    solution = solve_rows(problem, shared, std::move(inputs));
  } catch (const Error& error) {
    const std::string what = error.what();
    throw Error(what.starts_with(layer.name) ? what : layer.name + ": " + what);
  }
  const bool correct_drift = job_.recipe.correct_drift;
  std::vector<double> residual_drift(correct_drift ? moments.residual_sum : std::vector<double>());
  for (double& value : residual_drift) value /= double(moments.quantized.count);
  std::vector<double> first_drift(correct_drift && moments.quantized.positions() > 0 ? moments.residual_first
                                                                                     : std::vector<double>());
  for (double& value : first_drift) value /= double(std::max<int64_t>(1, moments.quantized.position_count[0]));
  // A target for centred inputs leaves the mean open: without drift correction it stays W·E[x].
  const Statistics* reference = correct_drift ? &moments.reference
                                : drift && job_.recipe.centres_inputs()
                                    ? &moments.quantized
                                    : nullptr;
  const CompensationResult result =
      compensate(job_.backend, {.weight = weight,
                                .target = target.empty() ? weight : target,
                                .quantized = solution.matrix,
                                .input = moments.quantized,
                                .reference = reference,
                                .residual_drift = residual_drift,
                                .first_drift = first_drift,
                                .kind = job_.recipe.compensation,
                                .power = [&](std::span<const float> a) { return shared.output_power(a); }});
  LayerRecord record{.report = {.name = layer.name,
                                .out_features = layer.out_features(),
                                .in_features = in,
                                .bits = grid.bits,
                                .group_size = grid.group_size,
                                .bits_per_weight = bits_per_weight(solution.matrix),
                                .error_before = result.error_before,
                                .error_after = result.error_after,
                                .damping = solution.damping,
                                .zero_inputs = moments.quantized.zero_share(),
                                .outlier_share = outlier_share(solution.matrix)}};
  record.matrix = std::move(solution.matrix);
  if (job_.recipe.compensation != Compensation::none) {
    record.bias = layer.bias ? layer.bias.to_floats() : std::vector<float>(size_t(layer.out_features()));
    for (size_t r = 0; r < record.bias.size(); ++r) record.bias[r] += result.channel[r];
    record.bias = output_.stored(layer.name, std::move(record.bias));
    if (in_block) record.positions = output_.stored(layer.name, result.position);
  }
  record.report.seconds = seconds_since(start);
  return record;
}

// The same for a layer just solved and for one that an earlier run recorded.
void Quantizer::install(nn::Linear& layer, LayerRecord record, bool in_block) {
  const int64_t out = layer.out_features();
  if (out_features(record.matrix) != out || in_features(record.matrix) != layer.in_features())
    throw Error(layer.name + ": its record is of another shape; start over with --force");
  report_.layers.push_back(record.report);
  biases_added_ |= in_block && !layer.bias && !record.bias.empty();
  if (in_block) {
    layer.weight = Weight::quantized(job_.backend, record.matrix);
    if (!record.bias.empty()) layer.bias = Tensor::from_floats(job_.backend, record.bias, {out});
    if (!record.positions.empty())
      layer.position_bias =
          Tensor::from_floats(job_.backend, record.positions, {int64_t(record.positions.size()) / out, out});
  }
  if (in_block && job_.recipe.tune_epochs > 0) {
    untuned_.push_back(std::move(record));
  } else {
    write(record, in_block);
  }
  tell_progress(layer);
}

void Quantizer::write(const LayerRecord& record, bool in_block) {
  const std::string& name = record.report.name;
  const int64_t out = out_features(record.matrix);
  output_.add_matrix(name, record.matrix);
  // Only the six layers of a block, and those that have one anyway, can hold a bias in the published configuration.
  const bool biased = in_block || job_.source.find(name + ".bias");
  if (!record.bias.empty()) output_.add_vector(name, biased ? ".bias" : ".compensation", record.bias, {out});
  if (!record.positions.empty())
    output_.add_vector(name, ".position_compensation", record.positions,
                       {int64_t(record.positions.size()) / out, out});
}

}  // namespace

QuantizeReport quantize_model(const QuantizeJob& job) {
  job.recipe.check();
  return Quantizer(job).run();
}

}  // namespace ballast
