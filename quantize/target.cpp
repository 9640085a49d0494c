#include "quantize/target.h"

#include <algorithm>

#include "engine/core/on_host.h"

namespace ballast {
namespace {

constexpr int64_t kRowsAtOnce = 512;

}  // namespace

// rows · Uᵀ · U: some rows of U at a time, and of those only what is not zero.
std::vector<float> times_inverse(Backend& backend, std::span<const float> rows, const InverseFactor& factor,
                                 bool ahead) {
  constexpr int64_t kPanel = 128;
  const int64_t n = factor.size, count = int64_t(rows.size()) / n;
  std::vector<float> out(rows.size()), panel(size_t(kPanel * n)), transposed(size_t(kPanel * n));
  std::vector<float> part(size_t(count * kPanel));
  for (int64_t first = 0; first < n; first += kPanel) {
    const int64_t width = std::min(kPanel, n - first), right = n - first;
    factor.rows(first, width, panel.data());
    for (int64_t i = 0; i < width; ++i)
      for (int64_t j = 0; j < right; ++j) transposed[size_t(j * width + i)] = panel[size_t(i * right + j)];
    TensorView from(rows.data() + first, DType::f32, {count, right});
    OutputView to(out.data() + first, DType::f32, {count, right});
    from.strides[0] = to.strides[0] = n;
    const OutputView products(part.data(), DType::f32, {count, width});
    std::fill(part.begin(), part.end(), 0.0f);
    backend.run(RankUpdate{
        .e = from, .u = {transposed.data(), DType::f32, {right, width}}, .w = products, .add = true});
    // Row j of U reaches from column j on: without those up to i, the inverse is that of H's part behind i.
    for (int64_t i = first; ahead && i < count; ++i)
      std::fill_n(part.begin() + i * width, std::min(width, i - first + 1), 0.0f);
    backend.run(
        RankUpdate{.e = products, .u = {panel.data(), DType::f32, {width, right}}, .w = to, .add = true});
  }
  return out;
}

DriftMoments drift_moments(InputMoments& moments, bool centred) {
  const int64_t n = moments.quantized.features;
  CHECK(int64_t(moments.drift.size()) == n * n && moments.has_reference());
  const double scale = 1 / double(moments.quantized.count);
  const std::vector<double> mean = moments.quantized.mean(), float_mean = moments.reference.mean();
  DriftMoments drift{std::move(moments.drift), std::move(moments.residual)};
  const auto finish = [&](std::vector<float>& sums, auto&& mean_of_row) {
    for (int64_t i = 0; i < int64_t(sums.size()) / n; ++i) {
      const double shift = centred ? mean_of_row(size_t(i)) : 0;
      for (int64_t j = 0; j < n; ++j) {
        float& value = sums[size_t(i * n + j)];
        value = float(double(value) * scale - shift * mean[size_t(j)]);
      }
    }
  };
  finish(drift.input, [&](size_t i) { return float_mean[i] - mean[i]; });
  finish(drift.residual, [&](size_t i) { return moments.residual_sum[i] * scale; });
  return drift;
}

void add_lost(Backend& backend, const TensorView& here, const TensorView& here_float, double weight,
              std::vector<double>& sums) {
  const OnHost read(backend, here), read_float(backend, here_float);
  backend.parallel_for(here.shape[1], [&](int64_t begin, int64_t end) {
    for (int64_t t = 0; t < here.shape[0]; ++t)
      for (int64_t i = begin; i < end; ++i)
        sums[size_t(i)] += weight * (double(read_float.row(t)[i]) - double(read.row(t)[i]));
  });
}

void add_drift(Backend& backend, Workspace& workspace, const TensorView& x, const TensorView& here,
               const TensorView& here_float, float* sums) {
  Workspace::Scope scope(workspace);
  const int64_t width = here.shape[1];
  const OutputView room = workspace.floats({std::min(kRowsAtOnce, x.shape[0]), width});
  for (int64_t first = 0; first < x.shape[0]; first += kRowsAtOnce) {
    const int64_t tokens = std::min(kRowsAtOnce, x.shape[0] - first);
    const OutputView lost = room.rows(0, tokens);
    backend.run(Subtract{.a = here_float.rows(first, tokens), .b = here.rows(first, tokens), .y = lost});
    backend.run(SecondMoment{
        .a = lost, .b = x.rows(first, tokens), .out_f32 = sums, .out_device = backend.device()});
  }
}

OutputView repeated_rows(Backend& backend, Workspace& workspace, const TensorView& rows, int64_t every, int64_t times) {
  const int64_t count = rows.shape[0] / every * times;
  const OutputView out = workspace.floats({count, rows.shape[1]});
  std::vector<int32_t> picked;
  for (int64_t i = 0; i < count; ++i) picked.push_back(int32_t(i / times * every));
  backend.run(GatherRows{.x = rows, .rows = {picked.data(), DType::i32, {count}}, .y = out});
  return out;
}

std::vector<float> asymmetric_target(Backend& backend, std::span<const float> weight,
                                     const DriftMoments& drift, const InverseFactor& factor) {
  const int64_t n = factor.size, rows = int64_t(weight.size()) / n;
  CHECK(drift.residual.empty() || drift.residual.size() == weight.size());
  std::vector<float> target(weight.begin(), weight.end());
  for (int64_t first = 0; first < rows; first += kRowsAtOnce) {
    const int64_t count = std::min(kRowsAtOnce, rows - first);
    const size_t begin = size_t(first * n), size = size_t(count * n);
    std::vector<float> correlated(size), ordered(size);
    if (!drift.residual.empty())
      std::copy_n(drift.residual.begin() + int64_t(begin), size, correlated.begin());
    backend.run(RankUpdate{.e = {weight.data() + begin, DType::f32, {count, n}},
                           .u = {drift.input.data(), DType::f32, {n, n}},
                           .w = {correlated.data(), DType::f32, {count, n}},
                           .add = true});
    for (int64_t r = 0; r < count; ++r)
      for (int64_t i = 0; i < n; ++i)
        ordered[size_t(r * n + i)] = correlated[size_t(r * n + factor.order[size_t(i)])];
    const std::vector<float> shift = times_inverse(backend, ordered, factor);
    for (int64_t r = 0; r < count; ++r)
      for (int64_t i = 0; i < n; ++i) {
        const int64_t column = factor.order[size_t(i)];
        if (!factor.dead[size_t(column)]) target[begin + size_t(r * n + column)] += shift[size_t(r * n + i)];
      }
  }
  return target;
}

}  // namespace ballast
