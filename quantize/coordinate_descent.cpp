#include "quantize/coordinate_descent.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "quantize/scale_refit.h"

namespace ballast {
namespace {

constexpr int64_t kBlockColumns = 128;
// A move must lead this much (of a step) beyond the midpoint between two values: f32 residuals cannot tell
// closer cases apart, and ties would move back and forth.
constexpr float kMargin = 0x1p-10f;
// An input of less than this share of the mean power says nothing about its weight.
constexpr double kNoPower = 0x1p-40;

class Descent {
 public:
  Descent(Backend& backend, std::span<const float> target, const Curvature& curvature, AffineMatrix& matrix,
          const CoordinateOptions& options);

  void recompute_residual();
  std::vector<double> objective();
  int64_t sweep();
  int64_t move_zero_points();
  bool refit();
  void restore_worse_rows(const AffineMatrix& start, const std::vector<double>& before,
                          std::vector<double>& after);
  bool off_grid = false;  ///< q_ still holds values that no code stands for

 private:
  struct Block;
  struct Trial {  ///< of one group of one row
    std::vector<float> residual, change;
  };
  Block gather(int64_t first, int64_t width) const;
  int64_t sweep_block(const Block& block);
  int64_t visit(int64_t row, const Block& block, float* residual, float* change);
  double try_zero_point(int64_t row, int64_t group, int by, Trial& trial) const;
  bool move_zero_point(int64_t row, int64_t group, Trial& trial, Trial& best);
  void order_greedily(int64_t row, const Block& block, std::vector<uint64_t>& keys) const;
  void refit_rows(int64_t first, int64_t count, std::vector<double>& a, std::vector<double>& b);
  bool apply_scale(int64_t row, int64_t group, float scale);
  void decode();
  int64_t groups() const { return matrix_.groups(); }
  /// c̄: the code less its zero point.
  float step(int64_t row, int64_t column) const {
    return float(int(matrix_.codes[size_t(row * n_ + column)]) -
                 int(matrix_.zero_points[size_t(row * groups() + column / matrix_.group_size)]));
  }

  Backend& backend_;
  std::span<const float> target_;
  AffineMatrix& matrix_;
  CoordinateOptions options_;
  int64_t rows_, n_;
  std::vector<float> h_;         ///< [n, n], damped
  std::vector<float> inverse_;   ///< [n]: 1 / H_jj, 0 for a free column
  std::vector<float> power_;     ///< [n]: √H_jj
  std::vector<uint8_t> dead_;    ///< [n]
  std::vector<int32_t> order_;   ///< [n]: columns as blocks take them
  std::vector<float> scales_;    ///< as the matrix's, decoded
  std::vector<float> q_;         ///< [rows, n]
  std::vector<float> residual_;  ///< [rows, n]: (W − Q)·H
};

// What the columns of one block share.
struct Descent::Block {
  std::vector<int32_t> columns;
  std::vector<float> h;      ///< [width, n]: their rows of H; empty when the block is the whole matrix
  std::vector<float> inner;  ///< [width, width]
};

Descent::Descent(Backend& backend, std::span<const float> target, const Curvature& curvature,
                 AffineMatrix& matrix, const CoordinateOptions& options)
    : backend_(backend),
      target_(target),
      matrix_(matrix),
      options_(options),
      rows_(matrix.out_features),
      n_(matrix.in_features),
      h_(curvature.h.begin(), curvature.h.end()),
      inverse_(size_t(n_)),
      power_(size_t(n_)),
      dead_(curvature.dead),
      order_(size_t(n_)),
      scales_(matrix.scales.size()),
      q_(size_t(rows_ * n_)),
      residual_(size_t(rows_ * n_)) {
  CHECK(int64_t(target.size()) == rows_ * n_ && curvature.size == n_);
  for (float value : h_)
    if (!std::isfinite(value)) throw Error("a second moment of the inputs is not finite");
  double trace = 0;
  for (int64_t i = 0; i < n_; ++i) trace += std::max(curvature.h[size_t(i * n_ + i)], 0.0);
  const double mean = trace / double(n_);
  for (int64_t i = 0; i < n_; ++i) {
    const double value = std::max(curvature.h[size_t(i * n_ + i)], 0.0) + options.damping * mean;
    if (dead_[size_t(i)] || value <= kNoPower * mean) continue;
    h_[size_t(i * n_ + i)] = float(value);
    inverse_[size_t(i)] = float(1 / value);
    power_[size_t(i)] = float(std::sqrt(value));
  }
  std::iota(order_.begin(), order_.end(), 0);
  if (options.order == ColumnOrder::blocks)
    std::stable_sort(order_.begin(), order_.end(),
                     [&](int32_t a, int32_t b) { return power_[size_t(a)] > power_[size_t(b)]; });
  for (size_t i = 0; i < scales_.size(); ++i) scales_[i] = f16_to_f32(matrix.scales[i]);
  if (options.per_layer)
    CHECK(std::count(matrix.scales.begin(), matrix.scales.end(), matrix.scales.front()) ==
              int64_t(matrix.scales.size()),
          "one scale per layer needs equal scales to start from");
  if (!options.start_at_target) {
    decode();
    return;
  }
  off_grid = true;
  std::copy(target.begin(), target.end(), q_.begin());
  for (int64_t row = 0; row < rows_; ++row)
    for (int64_t j = 0; j < n_; ++j)
      if (dead_[size_t(j)]) q_[size_t(row * n_ + j)] = 0;
}

void Descent::decode() {
  backend_.parallel_for(rows_, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) matrix_.decode_row(row, q_.data() + row * n_);
  });
}

void Descent::recompute_residual() {
  std::vector<float> error(q_.size());
  for (size_t i = 0; i < error.size(); ++i) error[i] = q_[i] - target_[i];
  std::fill(residual_.begin(), residual_.end(), 0.0f);
  backend_.run(RankUpdate{.e = {error.data(), DType::f32, {rows_, n_}},
                          .u = {h_.data(), DType::f32, {n_, n_}},
                          .w = {residual_.data(), DType::f32, {rows_, n_}}});
}

std::vector<double> Descent::objective() {
  std::vector<double> out(static_cast<size_t>(rows_));
  backend_.parallel_for(rows_, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t i = row * n_; i < (row + 1) * n_; ++i)
        out[size_t(row)] +=
            (double(target_[size_t(i)]) - double(q_[size_t(i)])) * double(residual_[size_t(i)]);
  });
  return out;
}

Descent::Block Descent::gather(int64_t first, int64_t width) const {
  Block block;
  block.columns.assign(order_.begin() + first, order_.begin() + first + width);
  if (width == n_ && options_.order != ColumnOrder::blocks) return block;
  block.h.resize(size_t(width * n_));
  block.inner.resize(size_t(width * width));
  for (int64_t i = 0; i < width; ++i) {
    const float* row = h_.data() + block.columns[size_t(i)] * n_;
    std::copy(row, row + n_, block.h.data() + i * n_);
    for (int64_t j = 0; j < width; ++j) block.inner[size_t(i * width + j)] = row[block.columns[size_t(j)]];
  }
  return block;
}

// Positions in the block by descending ‖x_j‖·|w_j|: the bits of a positive float ascend with it, and the
// position in the low half settles ties.
void Descent::order_greedily(int64_t row, const Block& block, std::vector<uint64_t>& keys) const {
  keys.resize(block.columns.size());
  for (size_t i = 0; i < keys.size(); ++i) {
    const int32_t column = block.columns[i];
    const float reach = power_[size_t(column)] * std::fabs(target_[size_t(row * n_ + column)]);
    keys[i] = (uint64_t(~std::bit_cast<uint32_t>(reach)) << 32) | uint64_t(i);
  }
  std::sort(keys.begin(), keys.end());
}

// One row's weights of a block, each at its best given the others. `residual` and `change` are by position in
// the block.
int64_t Descent::visit(int64_t row, const Block& block, float* residual, float* change) {
  const int64_t width = int64_t(block.columns.size());
  const float* h = block.inner.empty() ? h_.data() : block.inner.data();
  thread_local std::vector<uint64_t> keys;
  const bool greedy = options_.order != ColumnOrder::natural;
  if (greedy) order_greedily(row, block, keys);
  int64_t moved = 0;
  for (int64_t k = 0; k < width; ++k) {
    const int64_t i = greedy ? int64_t(uint32_t(keys[size_t(k)])) : k;
    const int64_t column = block.columns[size_t(i)];
    if (inverse_[size_t(column)] == 0 && !off_grid) continue;
    const size_t grid = size_t(row * groups() + column / matrix_.group_size);
    const float scale = scales_[grid], current = q_[size_t(row * n_ + column)];
    const float zero = float(matrix_.zero_points[grid]);
    const float best = current + residual[i] * inverse_[size_t(column)];
    if (!off_grid && std::fabs(best - current) <= (0.5f + kMargin) * scale) continue;
    const float code = std::clamp(std::nearbyint(best / scale) + zero, 0.0f, float(matrix_.max_code()));
    const float value = scale * (code - zero), delta = value - current;
    matrix_.codes[size_t(row * n_ + column)] = uint8_t(code);
    if (delta == 0) continue;
    q_[size_t(row * n_ + column)] = value;
    if (change) change[i] = delta;
    for (int64_t j = 0; j < width; ++j) residual[j] -= delta * h[i * width + j];
    ++moved;
  }
  return moved;
}

int64_t Descent::sweep_block(const Block& block) {
  const int64_t width = int64_t(block.columns.size());
  std::vector<float> change(static_cast<size_t>(rows_ * width));
  std::vector<int32_t> moved(static_cast<size_t>(rows_));
  backend_.parallel_for(rows_, [&](int64_t begin, int64_t end) {
    std::vector<float> residual(static_cast<size_t>(width));
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t i = 0; i < width; ++i)
        residual[size_t(i)] = residual_[size_t(row * n_ + block.columns[size_t(i)])];
      moved[size_t(row)] = int32_t(visit(row, block, residual.data(), change.data() + row * width));
    }
  });
  const int64_t all = std::accumulate(moved.begin(), moved.end(), int64_t(0));
  if (all * 16 > rows_ * width) {
    backend_.run(RankUpdate{.e = {change.data(), DType::f32, {rows_, width}},
                            .u = {block.h.data(), DType::f32, {width, n_}},
                            .w = {residual_.data(), DType::f32, {rows_, n_}}});
  } else if (all > 0) {  // few moves: touch only what they touch
    backend_.parallel_for(rows_, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        for (int64_t i = 0; i < width; ++i)
          if (const float delta = change[size_t(row * width + i)]; delta != 0)
            for (int64_t j = 0; j < n_; ++j)
              residual_[size_t(row * n_ + j)] -= delta * block.h[size_t(i * n_ + j)];
    });
  }
  return all;
}

int64_t Descent::sweep() {
  int64_t moved = 0;
  if (options_.order == ColumnOrder::greedy) {
    const Block whole = gather(0, n_);
    std::vector<int64_t> counts(static_cast<size_t>(rows_));
    backend_.parallel_for(rows_, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        counts[size_t(row)] = visit(row, whole, residual_.data() + row * n_, nullptr);
    });
    moved = std::accumulate(counts.begin(), counts.end(), int64_t(0));
  } else {
    for (int64_t first = 0; first < n_; first += kBlockColumns)
      moved += sweep_block(gather(first, std::min(kBlockColumns, n_ - first)));
  }
  off_grid = false;
  return moved;
}

// A group with its zero point moved by `by`: values stay where the grid still reaches them, then one pass of
// descent inside the group. Returns the change of the objective; `trial` receives codes and moves.
double Descent::try_zero_point(int64_t row, int64_t group, int by, Trial& trial) const {
  const int64_t size = matrix_.group_size, from = group * size;
  const size_t grid = size_t(row * groups() + group);
  const float scale = scales_[grid], zero = float(int(matrix_.zero_points[grid]) + by);
  const float low = -zero * scale, high = (float(matrix_.max_code()) - zero) * scale;
  trial.residual.assign(residual_.begin() + row * n_ + from, residual_.begin() + row * n_ + from + size);
  trial.change.assign(size_t(size), 0.0f);
  double objective = 0;
  const auto move_to = [&](int64_t j, float value) {
    const float* h = h_.data() + (from + j) * n_ + from;
    const float delta = value - (q_[size_t(row * n_ + from + j)] + trial.change[size_t(j)]);
    objective += double(delta) * (double(delta) * double(h[j]) - 2 * double(trial.residual[size_t(j)]));
    trial.change[size_t(j)] = value - q_[size_t(row * n_ + from + j)];
    for (int64_t k = 0; k < size; ++k) trial.residual[size_t(k)] -= delta * h[k];
  };
  for (int64_t j = 0; j < size; ++j)
    if (const float value = q_[size_t(row * n_ + from + j)]; value < low || value > high)
      move_to(j, std::clamp(value, low, high));
  for (int64_t j = 0; j < size; ++j) {
    if (inverse_[size_t(from + j)] == 0) continue;
    const float current = q_[size_t(row * n_ + from + j)] + trial.change[size_t(j)];
    const float best = current + trial.residual[size_t(j)] * inverse_[size_t(from + j)];
    if (std::fabs(best - current) <= (0.5f + kMargin) * scale) continue;
    const float code = std::clamp(std::nearbyint(best / scale) + zero, 0.0f, float(matrix_.max_code()));
    if (const float value = scale * (code - zero); value != current) move_to(j, value);
  }
  return objective;
}

bool Descent::move_zero_point(int64_t row, int64_t group, Trial& trial, Trial& best) {
  const size_t grid = size_t(row * groups() + group);
  const int zero = matrix_.zero_points[grid];
  double best_change = 0;
  int best_by = 0;
  for (const int by : {-1, 1}) {
    if (zero + by < 0 || zero + by > matrix_.max_code()) continue;
    const double change = try_zero_point(row, group, by, trial);
    if (change < best_change) best_change = change, best_by = by, std::swap(trial, best);
  }
  if (best_by == 0) return false;
  matrix_.zero_points[grid] = uint8_t(zero + best_by);
  for (int64_t j = 0; j < matrix_.group_size; ++j) {
    const int64_t column = group * matrix_.group_size + j;
    const float delta = best.change[size_t(j)], scale = scales_[grid];
    float& value = q_[size_t(row * n_ + column)];
    const float code = std::nearbyint((value + delta) / scale) + float(zero + best_by);
    matrix_.codes[size_t(row * n_ + column)] = uint8_t(code);
    value = scale * step(row, column);
    if (delta == 0) continue;
    const float* h = h_.data() + column * n_;
    for (int64_t k = 0; k < n_; ++k) residual_[size_t(row * n_ + k)] -= delta * h[k];
  }
  return true;
}

int64_t Descent::move_zero_points() {
  std::vector<int32_t> moved(static_cast<size_t>(rows_));
  backend_.parallel_for(rows_, [&](int64_t begin, int64_t end) {
    Trial trial, best;
    for (int64_t row = begin; row < end; ++row)
      for (int64_t group = 0; group < groups(); ++group)
        moved[size_t(row)] += int32_t(move_zero_point(row, group, trial, best));
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
                          std::span(b).subspan(size_t(r * groups()), size_t(groups())), scales))
          continue;
        for (int64_t g = 0; g < groups(); ++g)
          changed[size_t(first + r)] |= apply_scale(first + r, g, scales[size_t(g)]);
      }
    });
  }
  if (options_.per_layer) {
    float scale = scales_.front();
    if (refit_scales({&layer_a, 1}, {&layer_b, 1}, {&scale, 1}))
      for (int64_t row = 0; row < rows_; ++row)
        for (int64_t g = 0; g < groups(); ++g) changed[size_t(row)] |= apply_scale(row, g, scale);
  }
  return std::count(changed.begin(), changed.end(), 0) != rows_;
}

void Descent::restore_worse_rows(const AffineMatrix& start, const std::vector<double>& before,
                                 std::vector<double>& after) {
  // With one scale for all rows no row can go back alone.
  if (options_.per_layer) return;
  for (int64_t row = 0; row < rows_; ++row) {
    if (after[size_t(row)] <= before[size_t(row)]) continue;
    after[size_t(row)] = before[size_t(row)];
    std::copy_n(start.codes.begin() + row * n_, n_, matrix_.codes.begin() + row * n_);
    std::copy_n(start.scales.begin() + row * groups(), groups(), matrix_.scales.begin() + row * groups());
    std::copy_n(start.zero_points.begin() + row * groups(), groups(),
                matrix_.zero_points.begin() + row * groups());
  }
}

}  // namespace

CoordinateResult coordinate_descent(Backend& backend, std::span<const float> target,
                                    const Curvature& curvature, AffineMatrix& matrix,
                                    const CoordinateOptions& options) {
  CoordinateResult result;
  const AffineMatrix start = options.start_at_target ? AffineMatrix{} : matrix;
  Descent descent(backend, target, curvature, matrix, options);
  std::vector<double> before;
  if (!options.start_at_target) {
    descent.recompute_residual();
    before = descent.objective();
  }
  bool fresh = true;
  while (result.sweeps < options.sweeps) {
    ++result.sweeps;
    int64_t moved = descent.sweep();
    if (options.move_zero_points) moved += descent.move_zero_points();
    fresh = options.refit_scales && descent.refit();
    if (fresh) descent.recompute_residual();
    if (moved == 0) break;
  }
  if (!fresh) descent.recompute_residual();
  std::vector<double> after = descent.objective();
  if (!options.start_at_target) descent.restore_worse_rows(start, before, after);
  result.before = std::accumulate(before.begin(), before.end(), 0.0);
  result.after = std::accumulate(after.begin(), after.end(), 0.0);
  return result;
}

}  // namespace ballast
