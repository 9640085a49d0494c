#include "quantize/activation_search.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

namespace ballast {
namespace {

using Kind = ActivationGrid::Kind;

struct Range {
  float low = 0, high = 0;
};
Range range_of(const TensorView& x) {
  Range range;
  for (int64_t t = 0; t < x.shape[0]; ++t)
    for (int64_t i = 0; i < x.shape[1]; ++i) {
      range.low = std::min(range.low, x.row(t)[i]);
      range.high = std::max(range.high, x.row(t)[i]);
    }
  return range;
}

/// The best of the candidates so far.
class Best {
 public:
  explicit Best(const GridCost& cost) : cost_(cost) {}
  bool offer(const ActivationGrid& grid) {
    const double cost = cost_(grid);
    if (any_ && !(cost < least_)) return false;
    any_ = true;
    least_ = cost;
    grid_ = grid;
    return true;
  }
  const ActivationGrid& grid() const { return grid_; }
  double cost() const { return least_; }

 private:
  const GridCost& cost_;
  bool any_ = false;
  double least_ = 0;
  ActivationGrid grid_;
};

// Factors on a range: 1, then ever smaller.
std::vector<float> shrinkage(float each, int count) {
  std::vector<float> factors;
  float factor = 1;
  for (int i = 0; i < count; ++i, factor *= each) factors.push_back(factor);
  return factors;
}

// A host matrix.
struct Rows {
  explicit Rows(const Shape& size) : values(size_t(size.elements())), shape(size) {}
  OutputView view() { return {values.data(), DType::f32, shape}; }
  std::vector<float> values;
  Shape shape;
};

}  // namespace

double OutputErrors::operator()(const TensorView& e) const {
  double total = 0;
  const int64_t tokens = e.shape[0];
  std::vector<double> of_token(static_cast<size_t>(tokens));
  for (size_t index = 0; index < layers_.size(); ++index) {
    const nn::Linear& layer = *layers_[index];
    const int64_t out = layer.out_features();
    Rows y({tokens, out});
    layer.weight.visit([&]<class View>(const View& view) {
      backend_.run(Linear<View>{.x = e, .weight = view, .y = y.view()});
    });
    const std::span<const float> squares = squares_.empty() ? std::span<const float>() : squares_[index];
    CHECK(squares.empty() || squares.size() == y.values.size());
    backend_.parallel_for(tokens, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        double sum = 0;
        for (int64_t i = t * out; i < (t + 1) * out; ++i)
          sum += double(y.values[size_t(i)]) * double(y.values[size_t(i)]) *
                 (squares.empty() ? 1 : double(squares[size_t(i)]));
        of_token[size_t(t)] = sum;
      }
    });
    total = std::accumulate(of_token.begin(), of_token.end(), total);
  }
  return total;
}

ActivationGrid affine_grid(float low, float high, int bits) {
  low = std::min(low, 0.0f);
  high = std::max(high, 0.0f);
  if (low == 0 && high == 0) high = 1;
  ActivationGrid grid{.bits = bits};
  const int last = grid.levels() - 1;
  grid.step = std::clamp((high - low) / float(last), 0x1p-60f, 0x1p60f);
  grid.zero_point = std::clamp(int(std::nearbyint(-low / grid.step)), 0, last);
  return grid;
}

ActivationGrid search_affine(float low, float high, int bits, const GridCost& cost) {
  Best best(cost);
  float a = 1, b = 1;
  for (const float factor : shrinkage(0.9f, bits <= 4 ? 22 : bits <= 6 ? 14 : 8))
    if (best.offer(affine_grid(factor * low, factor * high, bits))) a = b = factor;
  // Either end for itself.
  for (const float by : {0.7f, 0.8f, 0.9f, 1.1f, 1.2f, 1.35f})
    if (low < 0 && a * by <= 1 && best.offer(affine_grid(a * by * low, b * high, bits))) a *= by;
  for (const float by : {0.7f, 0.8f, 0.9f, 1.1f, 1.2f, 1.35f})
    if (high > 0 && b * by <= 1 && best.offer(affine_grid(a * low, b * by * high, bits))) b *= by;
  return best.grid();
}

ActivationGrid search_twin_sign(float low, float high, int bits, const GridCost& cost) {
  Best best(cost);
  const float half = float(1 << (bits - 1));
  for (const float factor : shrinkage(0.88f, bits <= 4 ? 22 : 12)) {
    const float coarse = factor * high / (half - 1);
    // The ratio that covers the negative values best, and its neighbours.
    const int middle = int(std::nearbyint(std::log2(coarse * half / -low)));
    for (int shift = std::max(0, middle - 1); shift <= std::min(middle + 1, 10); ++shift)
      best.offer({.kind = Kind::twin_sign, .bits = bits, .step = std::ldexp(coarse, -shift), .shift = shift});
  }
  return best.grid();
}

ActivationGrid search_probabilities(int bits, bool logarithms, const GridCost& cost) {
  Best best(cost);
  const float coarse = 1 / (float(1 << (bits - 1)) - 1);
  for (int shift = 0; shift <= 12; ++shift)
    best.offer({.kind = Kind::twin_size, .bits = bits, .step = std::ldexp(coarse, -shift), .shift = shift});
  for (int per_octave = 1; logarithms && per_octave <= 2; ++per_octave)
    for (const float top : shrinkage(0.8f, 14))
      best.offer({.kind = Kind::logarithm, .bits = bits, .step = top, .per_octave = per_octave});
  return best.grid();
}

InputGrid search_input(Backend& backend, const TensorView& x, int bits, const OutputErrors& errors,
                       std::span<const float> factors) {
  Rows e(x.shape);
  const int64_t width = x.shape[1];
  const GridCost cost = [&](const ActivationGrid& grid) {
    backend.run(RoundActivations{.x = x, .grid = grid, .y = e.view()});
    backend.run(Subtract{.a = x, .b = e.view(), .y = e.view()});
    for (size_t i = 0; i < e.values.size() && !factors.empty(); ++i)
      e.values[i] *= factors[i % size_t(width)];
    return errors(e.view());
  };
  const auto [low, high] = range_of(x);
  InputGrid best{search_affine(low, high, bits, cost)};
  best.cost = cost(best.grid);
  if (bits == 8 || !(low < 0 && high > -4 * low)) return best;
  const ActivationGrid twin = search_twin_sign(low, high, bits, cost);
  if (const double other = cost(twin); other < best.cost) best = {twin, other};
  return best;
}

AttentionGrids search_attention(Backend& backend, const AttentionSample& sample, int bits, bool logarithms,
                                const OutputErrors& errors) {
  const TensorView* operands[] = {&sample.q, &sample.k, &sample.v};
  std::array<std::optional<ActivationGrid>, 3> grids;
  std::optional<ActivationGrid> probabilities;
  const Shape shape = sample.q.shape;
  std::array<Rows, 3> rounded{Rows(shape), Rows(shape), Rows(shape)};
  Rows exact(shape), u(shape);
  const float scale = 1.0f / std::sqrt(float(shape[1] / sample.branch.heads));
  const auto attend = [&](const std::array<std::optional<ActivationGrid>, 3>& with,
                          const std::optional<ActivationGrid>& with_probabilities, const OutputView& out) {
    std::array<TensorView, 3> read{sample.q, sample.k, sample.v};
    for (size_t i = 0; i < 3; ++i) {
      if (!with[i]) continue;
      backend.run(RoundActivations{.x = *operands[i], .grid = *with[i], .y = rounded[i].view()});
      read[i] = rounded[i].view();
    }
    backend.run(Attention{.q = read[0],
                          .k = read[1],
                          .v = read[2],
                          .cache = {},
                          .spans = sample.spans,
                          .heads = sample.branch.heads,
                          .scale = scale,
                          .mask = sample.branch.mask,
                          .probability_grid = with_probabilities,
                          .out = out});
  };
  attend({}, {}, exact.view());
  const auto cost_with = [&](const auto& with, const auto& with_probabilities) {
    attend(with, with_probabilities, u.view());
    backend.run(Subtract{.a = exact.view(), .b = u.view(), .y = u.view()});
    return errors(u.view());
  };
  const auto search_operand = [&](size_t index) {
    const auto [low, high] = range_of(*operands[index]);
    grids[index] = search_affine(low, high, bits, [&](const ActivationGrid& grid) {
      auto with = grids;
      with[index] = grid;
      return cost_with(with, probabilities);
    });
  };
  probabilities = search_probabilities(
      bits, logarithms, [&](const ActivationGrid& grid) { return cost_with(grids, std::optional(grid)); });
  for (const size_t index : {0u, 1u, 2u}) search_operand(index);
  if (bits <= 6)
    for (const size_t index : {0u, 1u}) search_operand(index);
  return {*grids[0], *grids[1], *probabilities, *grids[2]};
}

}  // namespace ballast
