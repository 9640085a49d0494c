#include "quantize/tuning.h"

#include <cmath>
#include <map>
#include <memory>
#include <numeric>
#include <utility>

#include "engine/core/on_host.h"
#include "engine/nn/backward.h"
#include "quantize/calibration.h"
#include "quantize/scale_range.h"

namespace ballast {
namespace {

/// Adam (arXiv 1412.6980, algorithm 1) over one vector of parameters.
class Adam {
 public:
  explicit Adam(size_t size) : first_(size), second_(size) {}

  /// Before the step number `t`, from 1.
  void begin(int64_t t) {
    rest1_ = 1 - std::pow(kFirst, double(t));
    rest2_ = 1 - std::pow(kSecond, double(t));
  }
  /// m̂ / (√v̂ + ε) of one parameter: what it loses, times the rate.
  double direction(size_t i, double gradient) {
    first_[i] = float(kFirst * first_[i] + (1 - kFirst) * gradient);
    second_[i] = float(kSecond * second_[i] + (1 - kSecond) * gradient * gradient);
    return first_[i] / rest1_ / (std::sqrt(second_[i] / rest2_) + kEpsilon);
  }
  void step(std::vector<float>& values, const std::vector<double>& gradient, double rate, int64_t t) {
    begin(t);
    for (size_t i = 0; i < values.size(); ++i) values[i] -= float(rate * direction(i, gradient[i]));
  }

 private:
  static constexpr double kFirst = 0.9, kSecond = 0.99, kEpsilon = 1e-12;
  std::vector<float> first_, second_;
  double rest1_ = 1, rest2_ = 1;
};

/// What is learned of one layer: factors on its scales, an addition to its bias in units of its outputs' spread, and where
/// `with_codes` the level of each code.
class TunedLayer {
 public:
  TunedLayer(Backend& backend, nn::Linear& layer, LayerRecord& record, bool with_codes)
      : backend_(backend),
        layer_(layer),
        record_(record),
        matrix_(std::get<AffineMatrix>(record.matrix)),
        factors_(matrix_.scales.size(), 1.0f),
        shift_(size_t(matrix_.out_features)),
        scale_steps_(factors_.size()),
        bias_steps_(shift_.size()),
        levels_(with_codes ? std::vector<float>(matrix_.codes.begin(), matrix_.codes.end())
                           : std::vector<float>()),
        level_steps_(levels_.size()),
        bias_(record.bias),
        decoded_(matrix_.codes.size()) {
    bias_.resize(shift_.size());
    for (int64_t row = 0; row < matrix_.out_features; ++row)
      matrix_.decode_row(row, decoded_.data() + row * matrix_.in_features);
  }

  /// With what stays as it is.
  void install_all() {
    install();
    const int64_t rows = int64_t(record_.positions.size()) / matrix_.out_features;
    if (rows > 0)
      layer_.position_bias = Tensor::from_floats(backend_, record_.positions, {rows, matrix_.out_features});
  }

  void gather(const TensorView& x, const TensorView& dz) {
    const OnHost dz_read(backend_, dz);
    const int64_t out = matrix_.out_features, in = matrix_.in_features, groups = matrix_.groups();
    if (spread_ == 0) measure_spread(x);
    weight_gradient_.assign(size_t(out * in), 0.0);
    backend_.run(SecondMoment{.a = dz, .b = x, .out = weight_gradient_.data()});
    scale_gradient_.assign(factors_.size(), 0.0);
    bias_gradient_.assign(shift_.size(), 0.0);
    backend_.parallel_for(out, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t column = 0; column < in; ++column) {
          const int64_t at = row * groups + column / matrix_.group_size;
          scale_gradient_[size_t(at)] +=
              weight_gradient_[size_t(row * in + column)] * double(decoded_[size_t(row * in + column)]);
        }
        for (int64_t t = 0; t < dz.shape[0]; ++t)
          bias_gradient_[size_t(row)] += double(dz_read.row(t)[row]) * spread_;
      }
    });
    seen_ = true;
  }

  /// `left`: share of the rates that is left.
  void step(const TuningOptions& rates, double left, int64_t t) {
    if (!seen_) return;
    if (!levels_.empty()) step_levels(rates.code_rate * left, t);
    scale_steps_.step(factors_, scale_gradient_, rates.scale_rate * left, t);
    bias_steps_.step(shift_, bias_gradient_, rates.bias_rate * left, t);
    install();
  }

  /// The layer as it stands, in float.
  void install() {
    const int64_t out = matrix_.out_features, in = matrix_.in_features;
    std::vector<float> weight(size_t(out * in)), bias(bias_);
    backend_.parallel_for(out, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        for (int64_t column = 0; column < in; ++column)
          weight[size_t(row * in + column)] =
              decoded_[size_t(row * in + column)] *
              factors_[size_t(row * matrix_.groups() + column / matrix_.group_size)];
    });
    for (size_t i = 0; i < bias.size(); ++i) bias[i] += shift_[i] * float(spread_);
    layer_.weight = Weight::dense(backend_, {weight.data(), DType::f32, {out, in}});
    layer_.bias = Tensor::from_floats(backend_, bias, {out});
  }

  /// Puts what was learned into the record. How many codes have changed.
  int64_t keep() {
    int64_t moved = 0;
    for (size_t i = 0; i < levels_.size(); ++i) {
      const uint8_t code = code_of(levels_[i]);
      moved += std::exchange(matrix_.codes[i], code) != code;
    }
    for (size_t i = 0; i < factors_.size(); ++i) {
      const float scale = f16_to_f32(matrix_.scales[i]) * std::max(factors_[i], 0.0f);
      matrix_.scales[i] = f32_to_f16(std::clamp(scale, smallest_scale(matrix_.half_zeros), kLargestScale));
    }
    for (size_t i = 0; i < bias_.size(); ++i) bias_[i] += shift_[i] * float(spread_);
    if (!record_.bias.empty()) record_.bias = bias_;
    return moved;
  }

  int64_t codes() const { return int64_t(matrix_.codes.size()); }

 private:
  uint8_t code_of(float level) const { return uint8_t(std::lround(level)); }

  void step_levels(double rate, int64_t t) {
    const int64_t in = matrix_.in_features;
    const float low = -0.49f,
                high = float(matrix_.max_code()) + 0.49f;  // what rounds to the first and the last code
    level_steps_.begin(t);
    backend_.parallel_for(matrix_.out_features, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        for (int64_t column = 0; column < in; ++column) {
          const size_t at = size_t(row * in + column);
          const int64_t group = column / matrix_.group_size;
          const float scale = matrix_.scale(row, group);
          const double factor = factors_[size_t(row * matrix_.groups() + group)];
          const double change =
              rate * level_steps_.direction(at, weight_gradient_[at] * double(scale) * factor);
          levels_[at] = std::clamp(levels_[at] - float(change), low, high);
          decoded_[at] = scale * (float(code_of(levels_[at])) - matrix_.zero(row, group));
        }
    });
  }

  // √ of the mean over rows of Σ_j W² E[x_j²]: the outputs' spread were the inputs independent.
  void measure_spread(const TensorView& x_there) {
    const OnHost x(backend_, x_there);
    const int64_t tokens = x_there.shape[0], in = matrix_.in_features;
    std::vector<double> power(size_t(in), 0.0);
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t i = 0; i < in; ++i)
        power[size_t(i)] += double(x.row(t)[i]) * double(x.row(t)[i]) / double(tokens);
    double sum = 0;
    for (int64_t row = 0; row < matrix_.out_features; ++row)
      for (int64_t i = 0; i < in; ++i)
        sum += std::pow(double(decoded_[size_t(row * in + i)]), 2) * power[size_t(i)];
    spread_ = std::max(1e-6, std::sqrt(sum / double(matrix_.out_features)));
  }

  Backend& backend_;
  nn::Linear& layer_;
  LayerRecord& record_;
  AffineMatrix& matrix_;
  std::vector<float> factors_, shift_;
  Adam scale_steps_, bias_steps_;
  std::vector<float> levels_;  ///< [out_features, in_features], or empty where codes stay
  Adam level_steps_;
  std::vector<float> bias_;
  std::vector<float> decoded_;  ///< [out_features, in_features]: the weight with the scales before tuning
  std::vector<double> weight_gradient_, scale_gradient_, bias_gradient_;
  double spread_ = 0;
  bool seen_ = false;
};

class TuningObserver final : public nn::Observer {
 public:
  std::map<const nn::Linear*, TunedLayer> layers;

  void input(const nn::Linear&, const TensorView&) override {}
  void gradient(const nn::Linear& layer, const TensorView& x, const TensorView& dz) override {
    if (const auto found = layers.find(&layer); found != layers.end()) found->second.gather(x, dz);
  }
};

/// The float model's hidden states behind every block, and how far others are from them.
class HiddenTargets {
 public:
  HiddenTargets(Backend& backend, double weight) : backend_(backend), weight_(weight) {}

  void clear() { wanted_.clear(); }
  void keep(const TensorView& hidden) {
    if (weight_ > 0) wanted_.push_back(copy_of(hidden));
  }
  nn::HiddenLoss loss() const {
    if (weight_ == 0) return {};
    return [this](size_t index, const TensorView& hidden, const OutputView& gradient) {
      add_gradient(wanted_[index], OnHost(backend_, hidden).row(0), gradient);
    };
  }

 private:
  std::vector<float> copy_of(const TensorView& x) const {
    std::vector<float> values(size_t(x.shape.elements()));
    backend_.copy_to_host(values.data(), x.data, x.bytes());
    return values;
  }

  void add_gradient(const std::vector<float>& wanted, const float* hidden, const OutputView& gradient) const {
    const int64_t tokens = gradient.shape[0], width = gradient.shape[1];
    std::vector<double> spread(static_cast<size_t>(tokens));
    backend_.parallel_for(tokens, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        double sum = 0, squares = 0;
        for (int64_t i = t * width; i < (t + 1) * width; ++i) {
          sum += double(wanted[size_t(i)]);
          squares += double(wanted[size_t(i)]) * double(wanted[size_t(i)]);
        }
        spread[size_t(t)] = squares - sum * sum / double(width);
      }
    });
    const double all = std::accumulate(spread.begin(), spread.end(), 0.0);
    std::vector<float> sum = copy_of(gradient);
    const float factor = float(2 * weight_ / std::max(all, 1e-30));
    backend_.parallel_for(tokens, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * width; i < end * width; ++i)
        sum[size_t(i)] += factor * (hidden[i] - wanted[size_t(i)]);
    });
    backend_.copy_to_device(gradient.as<void>(), sum.data(), gradient.bytes());
  }

  Backend& backend_;
  double weight_;
  std::vector<std::vector<float>> wanted_;  ///< a block each, [tokens, hidden]
};

}  // namespace

TuningResult tune(Backend& backend, nn::Model& model, const CalibrationTokens& tokens,
                  std::vector<LayerRecord>& records, const ActivationChooser* activations,
                  const TuningOptions& options,
                  const std::function<void(int64_t done, int64_t all)>& progress) {
  std::map<std::string, LayerRecord*> by_name;
  for (LayerRecord& record : records)
    if (std::holds_alternative<AffineMatrix>(record.matrix)) by_name[record.report.name] = &record;
  std::vector<std::unique_ptr<nn::Block>> blocks;
  std::vector<nn::Block*> pointers;
  TuningObserver observer;
  for (int64_t index = 0; index < model.facts().layers; ++index) {
    blocks.push_back(model.make_block(index));
    pointers.push_back(blocks.back().get());
    if (activations) activations->apply(*blocks.back());
    for (const auto& branch : blocks.back()->branches) {
      std::vector<nn::Linear*> layers = branch->expand();
      layers.push_back(&branch->contract());
      for (nn::Linear* layer : layers)
        if (const auto found = by_name.find(layer->name); found != by_name.end())
          observer.layers.try_emplace(layer, backend, *layer, *found->second, options.code_rate > 0)
              .first->second.install_all();
    }
  }

  HiddenStream stream(backend, model, tokens);
  const int64_t parts = stream.parts(), all = parts * options.epochs;
  HiddenTargets targets(backend, options.hidden_weight);
  TuningResult result;
  int64_t done = 0, early = 0, late = 0;
  const auto step = [&](const HiddenStream::Part& part) {
    const nn::ForwardContext& plain = part.context;
    const int64_t rows = model.logit_rows(plain.batch);
    const OutputView hidden = plain.workspace.floats(part.hidden.shape);
    backend.copy_to_device(hidden.as<void>(), part.hidden.data, part.hidden.bytes());
    targets.clear();
    for (int64_t index = 0; index < model.facts().layers; ++index) {
      model.block(index).forward(plain, hidden);
      targets.keep(hidden);
    }
    const OutputView teacher = plain.workspace.floats({rows, model.facts().vocab});
    model.head(plain, hidden, teacher);
    const double loss = nn::back_propagate(
        {plain.backend, plain.workspace, plain.batch, plain.cache, &observer},
        {model, pointers, part.hidden, nn::distillation_loss(teacher, 1 / float(rows)), targets.loss()});
    const double left = 1 - double(done) / double(all);
    ++done;
    for (auto& [layer, tuned] : observer.layers) tuned.step(options, left, done);
    const int64_t tenth = std::max<int64_t>(1, parts / 10);
    if (done <= tenth) result.before += loss, ++early;
    if (done > all - tenth) result.after += loss, ++late;
    progress(done, all);
  };
  for (int epoch = 0; epoch < options.epochs; ++epoch) stream.for_each_part(step);
  result.before /= double(std::max<int64_t>(1, early));
  result.after /= double(std::max<int64_t>(1, late));
  int64_t moved = 0, codes = 0;
  for (auto& [layer, tuned] : observer.layers) {
    moved += tuned.keep();
    codes += tuned.codes();
  }
  result.codes_moved = double(moved) / double(std::max<int64_t>(1, codes));
  for (int64_t index = 0; index < model.facts().layers; ++index) model.unload_block(index);
  return result;
}

}  // namespace ballast
