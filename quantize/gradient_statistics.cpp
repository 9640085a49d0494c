#include "quantize/gradient_statistics.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "engine/core/on_host.h"
#include "engine/nn/backward.h"

namespace ballast {
namespace {

// A key's bias moves all scores of a query alike, so softmax knows nothing of it: its gradient is rounding noise, a share of
// 2^-24 or so of what the weights get, and squared here.
constexpr double kNoBias = 0x1p-34;
// One input that comes again and again (the class token's into the first block) leaves rounding, too, once it is centred.
constexpr double kNothingLeft = 0x1p-20;

// A host matrix for the product ops.
struct Rows {
  Rows(int64_t rows, int64_t columns) : values(size_t(rows * columns)), shape{rows, columns} {}
  float* row(int64_t index) { return values.data() + index * shape[1]; }
  OutputView view() { return {values.data(), DType::f32, shape}; }

  std::vector<float> values;
  Shape shape;
};

class GradientObserver final : public nn::Observer {
 public:
  GradientObserver(Backend& backend, const GradientKinds& kinds) : backend_(backend), kinds_(kinds) {}

  void observe(const nn::Linear& layer) {
    const int64_t width = layer.in_features() + 1;
    const ExtendedMoment empty{layer.in_features(), std::vector<double>(size_t(width * width))};
    LayerGradients gradients{.name = layer.name, .out_features = layer.out_features()};
    if (kinds_.output_adaptive) gradients.output_adaptive = empty;
    if (kinds_.guided_groups > layer.out_features())
      throw Error(str(layer.name, ": ", kinds_.guided_groups, " groups of output rows, but it has ",
                      layer.out_features(), " rows"));
    gradients.guided.assign(size_t(kinds_.guided_groups), empty);
    index_[&layer] = layers.size();
    layers.push_back(std::move(gradients));
  }
  /// The sequences of the pass that follows.
  void spans(std::span<const AttentionSpan> spans) { spans_ = spans; }

  void input(const nn::Linear&, const TensorView&) override {}
  void gradient(const nn::Linear& layer, const TensorView& x_there, const TensorView& dz_there) override {
    const auto at = index_.find(&layer);
    if (at == index_.end()) return;
    const OnHost read(backend_, x_there);
    const TensorView& x = read.view();
    LayerGradients& gradients = layers[at->second];
    if (kinds_.output_adaptive)
      for (const AttentionSpan& span : spans_)
        add_sample(x.rows(span.first_row, span.rows), dz_there.rows(span.first_row, span.rows),
                   gradients.output_adaptive);
    if (kinds_.guided_groups == 0) return;
    const OnHost dz(backend_, dz_there);
    for (int64_t group = 0; group < kinds_.guided_groups; ++group)
      add_guided(x, dz.view(), gradients.first_row(group), gradients.first_row(group + 1),
                 gradients.guided[size_t(group)]);
  }

  std::vector<LayerGradients> layers;

 private:
  /// x with a last column of ones, each row times its factor.
  template <class Factor>
  Rows extended(const TensorView& x, Factor&& factor) {
    const int64_t features = x.shape[1];
    Rows out(x.shape[0], features + 1);
    backend_.parallel_for(x.shape[0], [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const float scale = factor(t), *from = x.row(t);
        float* to = out.row(t);
        for (int64_t i = 0; i < features; ++i) to[i] = scale * from[i];
        to[features] = scale;
      }
    });
    return out;
  }

  void add_sample(const TensorView& x, const TensorView& dz, ExtendedMoment& moment) {
    const int64_t out = dz.shape[1], width = moment.features + 1;
    Rows ones = extended(x, [](int64_t) { return 1.0f; });
    ++moment.count;
    if (backend_.device() != Device::cpu) {
      const Tensor g(backend_, DType::f32, {out, width});
      backend_.clear(g.view().as<void>(), g.bytes());
      backend_.run(SecondMoment{
          .a = dz, .b = ones.view(), .out_f32 = g.view().as<float>(), .out_device = backend_.device()});
      return add_square(g.view(), moment);
    }
    std::vector<double> sums(size_t(out * width));
    backend_.run(SecondMoment{.a = dz, .b = ones.view(), .out = sums.data()});
    Rows g(out, width);
    std::transform(sums.begin(), sums.end(), g.values.begin(), [](double value) { return float(value); });
    add_square(g.view(), moment);
  }

  void add_square(const TensorView& rows, ExtendedMoment& moment) {
    backend_.run(SecondMoment{.a = rows,
                              .b = rows,
                              .out = moment.there.place(backend_, moment.sum),
                              .out_device = backend_.device()});
  }

  void add_guided(const TensorView& x, const TensorView& dz, int64_t first_row, int64_t last_row,
                  ExtendedMoment& moment) {
    // The root of s on both sides keeps the product symmetric, which halves its cost.
    Rows weighted = extended(x, [&](int64_t t) {
      double squares = 0;
      for (int64_t j = first_row; j < last_row; ++j) squares += double(dz.row(t)[j]) * double(dz.row(t)[j]);
      return float(std::sqrt(squares / double(last_row - first_row)));
    });
    add_square(weighted.view(), moment);
    moment.count += x.shape[0];
  }

  Backend& backend_;
  GradientKinds kinds_;
  std::unordered_map<const nn::Linear*, size_t> index_;
  std::span<const AttentionSpan> spans_;
};

}  // namespace

std::vector<double> ExtendedMoment::mean() const {
  const int64_t width = features + 1;
  const double weight = sum[size_t(width * width - 1)];
  std::vector<double> out(size_t(features), 0.0);
  double trace = 0;
  for (int64_t i = 0; i < features; ++i) trace += sum[size_t(i * (width + 1))];
  if (weight <= kNoBias * trace / double(features)) return out;
  for (int64_t i = 0; i < features; ++i) out[size_t(i)] = sum[size_t(features * width + i)] / weight;
  return out;
}

Curvature ExtendedMoment::curvature(bool centred) const {
  CHECK(count > 0, "no gradients were gathered");
  const int64_t width = features + 1;
  Curvature curvature{features, std::vector<double>(size_t(features * features)),
                      std::vector<uint8_t>(size_t(features))};
  const std::vector<double> constant = centred ? mean() : std::vector<double>(size_t(features), 0.0);
  double before = 0, after = 0;
  for (int64_t i = 0; i < features; ++i) {
    const double* row = sum.data() + i * width;
    before += row[i];
    after += row[i] - row[features] * constant[size_t(i)];
    curvature.dead[size_t(i)] = row[i] == 0;
    for (int64_t j = 0; j < features; ++j)
      curvature.h[size_t(i * features + j)] = (row[j] - row[features] * constant[size_t(j)]) / double(count);
  }
  if (after > kNothingLeft * before) return curvature;
  std::fill(curvature.h.begin(), curvature.h.end(), 0.0);
  for (int64_t i = 0; i < features; ++i) {
    curvature.h[size_t(i * features + i)] = 1;
    curvature.dead[size_t(i)] = 0;
  }
  return curvature;
}

const LayerGradients* GradientStatistics::find(const std::string& name) const {
  for (const LayerGradients& layer : layers)
    if (layer.name == name) return &layer;
  return nullptr;
}

GradientStatistics gather_gradients(const GradientRequest& request) {
  nn::Model& model = request.model;
  const int64_t layers = model.facts().layers;
  CHECK(request.first >= 0 && request.first <= layers && request.observed >= 0);
  GradientObserver observer(request.backend, request.kinds);
  std::vector<nn::Block*> blocks;
  for (int64_t index = request.first; index < layers; ++index) {
    nn::Block* block = index == request.first && request.block ? request.block : &model.block(index);
    blocks.push_back(block);
    if (index - request.first >= request.observed) continue;
    for (const auto& branch : block->branches) {
      for (const nn::Linear* layer : branch->expand()) observer.observe(*layer);
      observer.observe(branch->contract());
    }
  }
  if (request.head) observer.observe(model.lm_head());

  double loss = 0;
  int64_t predicted = 0;
  request.stream.for_each_part([&](const HiddenStream::Part& part) {
    const nn::ForwardContext& plain = part.context;
    observer.spans(plain.batch.spans);
    loss += nn::back_propagate({plain.backend, plain.workspace, plain.batch, plain.cache, &observer},
                               {model, blocks, part.hidden,
                                model.facts().image ? nn::likeliest_class_loss() : nn::next_token_loss()});
    for (const AttentionSpan& span : plain.batch.spans) predicted += model.facts().image ? 1 : span.rows - 1;
  });
  for (LayerGradients& layer : observer.layers) {
    layer.output_adaptive.there.settle(request.backend, layer.output_adaptive.sum);
    for (ExtendedMoment& moment : layer.guided) moment.there.settle(request.backend, moment.sum);
  }
  return {loss / double(std::max<int64_t>(1, predicted)), std::move(observer.layers)};
}

}  // namespace ballast
