// Coordinate descent: zero points and scales.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "quantize/affine_fit.h"
#include "quantize/descent.h"
#include "quantize/scale_range.h"
#include "quantize/scale_refit.h"

namespace ballast {

// A group on another grid: every weight goes to the value that is best given the others, twice in turn. Returns the
// change of the objective; `trial` receives the moves.
double Descent::try_grid(int64_t row, int64_t group, const GridMove& grid, Trial& trial) const {
  constexpr int kPasses = 2;
  const int64_t size = matrix_.group_size, from = group * size;
  const float zero = matrix_.zero_of(grid.zero_point), scale = grid.scale;
  trial.residual.assign(residual_.begin() + row * n_ + from, residual_.begin() + row * n_ + from + size);
  trial.change.assign(size_t(size), 0.0f);
  double objective = 0;
  for (int pass = 0; pass < kPasses; ++pass)
    for (int64_t j = 0; j < size; ++j) {
      const float value = q_[size_t(row * n_ + from + j)], current = value + trial.change[size_t(j)];
      const float best = current + trial.residual[size_t(j)] * inverse_[size_t(from + j)];
      if (pass > 0 && std::fabs(best - current) <= (0.5f + kMargin) * scale) continue;
      const float moved = scale * (nearest_code(best / scale, zero, float(max_code())) - zero);
      const float delta = moved - current;
      if (delta == 0) continue;
      const float* h = h_.data() + (from + j) * n_ + from;
      objective += double(delta) * (double(delta) * double(h[j]) - 2 * double(trial.residual[size_t(j)]));
      trial.change[size_t(j)] = moved - value;
      for (int64_t k = 0; k < size; ++k) trial.residual[size_t(k)] -= delta * h[k];
    }
  return objective;
}

// Zero points up to two away, and scales a little smaller and larger where a group is short enough to try them.
std::vector<Descent::GridMove> Descent::neighbours(int64_t row, int64_t group) const {
  constexpr int64_t kShort = 128;
  constexpr float kFactors[] = {1, 0.88f, 1.14f};
  const size_t at = size_t(row * groups() + group);
  const int zero = matrix_.zero_points[at];
  const bool scales = options_.refit_scales && !options_.per_layer && matrix_.group_size <= kShort;
  const int reach = scales || matrix_.half_zeros ? 2 : 1;
  std::vector<GridMove> out;
  for (int to = std::max(zero - reach, 0); to <= std::min(zero + reach, max_code()); ++to)
    for (const float factor : std::span(kFactors, scales ? 3 : 1)) {
      const float scale = f16_to_f32(f32_to_f16(scales_[at] * factor));
      if (valid_scale(scale, matrix_.half_zeros) && (to != zero || scale != scales_[at]))
        out.push_back({to, scale});
    }
  return out;
}

bool Descent::move_grid(int64_t row, int64_t group, Trial& trial, Trial& best) {
  double best_change = 0;
  std::optional<GridMove> to;
  for (const GridMove& grid : neighbours(row, group))
    if (const double change = try_grid(row, group, grid, trial); change < best_change)
      best_change = change, to = grid, std::swap(trial, best);
  if (!to) return false;
  const size_t at = size_t(row * groups() + group);
  matrix_.zero_points[at] = uint8_t(to->zero_point);
  matrix_.scales[at] = f32_to_f16(scales_[at] = to->scale);
  const float zero = matrix_.zero_of(to->zero_point);
  for (int64_t j = 0; j < matrix_.group_size; ++j) {
    const int64_t column = group * matrix_.group_size + j;
    float& value = q_[size_t(row * n_ + column)];
    const float moved = value + best.change[size_t(j)];
    matrix_.codes[size_t(row * n_ + column)] =
        uint8_t(nearest_code(moved / to->scale, zero, float(max_code())));
    const float delta = to->scale * step(row, column) - value;
    if (delta == 0) continue;
    value = to->scale * step(row, column);
    const float* h = h_.data() + column * n_;
    for (int64_t k = 0; k < n_; ++k) residual_[size_t(row * n_ + k)] -= delta * h[k];
  }
  return true;
}

int64_t Descent::move_grids() {
  std::vector<int32_t> moved(static_cast<size_t>(rows_));
  backend_.parallel_for(rows_, [&](int64_t begin, int64_t end) {
    Trial trial, best;
    for (int64_t row = begin; row < end; ++row)
      for (int64_t group = 0; group < groups(); ++group)
        moved[size_t(row)] += int32_t(move_grid(row, group, trial, best));
  });
  return std::accumulate(moved.begin(), moved.end(), int64_t(0));
}

// A and b of scale_refit.h for rows [first, first + count): a [count, groups, groups], upper triangle; b
// [count, groups].
void Descent::refit_rows(int64_t first, int64_t count, std::vector<double>& a, std::vector<double>& b) {
  const int64_t size = matrix_.group_size;
  std::vector<float> steps(static_cast<size_t>(count * n_)), product;
  backend_.parallel_for(count, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      for (int64_t j = 0; j < n_; ++j) {
        const float value = steps[size_t(r * n_ + j)] = step(first + r, j);
        b[size_t(r * groups() + j / size)] += double(value) * double(residual_[size_t((first + r) * n_ + j)]);
      }
  });
  for (int64_t group = 0; group < groups(); ++group) {
    const int64_t from = group * size, width = n_ - from;
    product.assign(size_t(count * width), 0.0f);
    TensorView e(steps.data() + from, DType::f32, {count, size});
    TensorView u(h_.data() + from * n_ + from, DType::f32, {size, width});
    e.strides[0] = u.strides[0] = n_;
    backend_.run(RankUpdate{.e = e, .u = u, .w = {product.data(), DType::f32, {count, width}}});
    backend_.parallel_for(count, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        for (int64_t j = 0; j < width; ++j)  // RankUpdate subtracts
          a[size_t((r * groups() + group) * groups() + (from + j) / size)] -=
              double(product[size_t(r * width + j)]) * double(steps[size_t(r * n_ + from + j)]);
    });
  }
}

bool Descent::apply_scale(int64_t row, int64_t group, float scale) {
  const size_t grid = size_t(row * groups() + group);
  if (scales_[grid] == scale) return false;
  scales_[grid] = scale;
  matrix_.scales[grid] = f32_to_f16(scale);
  for (int64_t j = group * matrix_.group_size; j < (group + 1) * matrix_.group_size; ++j)
    q_[size_t(row * n_ + j)] = scale * step(row, j);
  return true;
}

bool Descent::refit() {
  constexpr int64_t kSystemDoubles = int64_t(1) << 22;
  const int64_t system = groups() * groups();
  const int64_t tile = std::clamp<int64_t>(kSystemDoubles / system, 16, 512);
  double layer_a = 0, layer_b = 0;
  std::vector<uint8_t> changed(static_cast<size_t>(rows_));
  for (int64_t first = 0; first < rows_; first += tile) {
    const int64_t count = std::min(tile, rows_ - first);
    std::vector<double> a(static_cast<size_t>(count * system)), b(static_cast<size_t>(count * groups()));
    refit_rows(first, count, a, b);
    if (options_.per_layer) {
      for (int64_t i = 0; i < count * groups(); ++i) {
        layer_b += b[size_t(i)];
        for (int64_t k = i % groups(); k < groups(); ++k)
          layer_a += (k == i % groups() ? 1 : 2) * a[size_t(i * groups() + k)];
      }
      continue;
    }
    backend_.parallel_for(count, [&](int64_t begin, int64_t end) {
      std::vector<float> scales(static_cast<size_t>(groups()));
      for (int64_t r = begin; r < end; ++r) {
        const size_t at = size_t((first + r) * groups());
        std::copy_n(scales_.begin() + int64_t(at), groups(), scales.begin());
        if (!refit_scales(std::span(a).subspan(size_t(r * system), size_t(system)),
                          std::span(b).subspan(size_t(r * groups()), size_t(groups())), matrix_.half_zeros,
                          scales))
          continue;
        for (int64_t g = 0; g < groups(); ++g)
          changed[size_t(first + r)] |= apply_scale(first + r, g, scales[size_t(g)]);
      }
    });
  }
  if (options_.per_layer) {
    float scale = scales_.front();
    if (refit_scales({&layer_a, 1}, {&layer_b, 1}, matrix_.half_zeros, {&scale, 1}))
      for (int64_t row = 0; row < rows_; ++row)
        for (int64_t g = 0; g < groups(); ++g) changed[size_t(row)] |= apply_scale(row, g, scale);
  }
  return std::count(changed.begin(), changed.end(), 0) != rows_;
}

}  // namespace ballast
