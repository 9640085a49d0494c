// Coordinate descent: set-up, residuals and the sweeps over the codes.
#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "quantize/affine_fit.h"
#include "quantize/descent.h"

namespace ballast {
namespace {

constexpr int64_t kBlockColumns = 128;
// An input of less than this share of the mean power says nothing about its weight.
constexpr double kNoPower = 0x1p-40;
}  // namespace

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
      diagonal_(size_t(n_)),
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
  for (int64_t i = 0; i < n_; ++i) {
    diagonal_[size_t(i)] = std::max(curvature.h[size_t(i * n_ + i)], 0.0);
    mean_power_ += diagonal_[size_t(i)] / double(n_);
    power_[size_t(i)] = float(std::sqrt(diagonal_[size_t(i)]));
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
  off_grid_ = true;
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

// R holds (W − Q)·diag as well: what the diagonal gains, R gains.
void Descent::set_damping(double damping) {
  const float gain = float((damping - damping_) * mean_power_);
  damping_ = damping;
  for (int64_t i = 0; i < n_; ++i) {
    if (dead_[size_t(i)]) continue;
    const double value = diagonal_[size_t(i)] + damping * mean_power_;
    h_[size_t(i * n_ + i)] = float(value);
    inverse_[size_t(i)] = value > kNoPower * mean_power_ ? float(1 / value) : 0;
  }
  backend_.parallel_for(rows_, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t j = 0; j < n_; ++j)
        if (!dead_[size_t(j)])
          residual_[size_t(row * n_ + j)] +=
              gain * (target_[size_t(row * n_ + j)] - q_[size_t(row * n_ + j)]);
  });
}

void Descent::recompute_residual() {
  std::vector<float> error(q_.size());
  backend_.parallel_for(rows_, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * n_; i < end * n_; ++i) error[size_t(i)] = q_[size_t(i)] - target_[size_t(i)];
  });
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
  if (options_.order == ColumnOrder::greedy) return block;
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
    if (inverse_[size_t(column)] == 0 && !off_grid_) continue;
    const size_t grid = size_t(row * groups() + column / matrix_.group_size);
    const float scale = scales_[grid], current = q_[size_t(row * n_ + column)];
    const float zero = matrix_.zero_of(matrix_.zero_points[grid]);
    const float best = current + residual[i] * inverse_[size_t(column)];
    if (!off_grid_ && std::fabs(best - current) <= (0.5f + kMargin) * scale) continue;
    const float code = nearest_code(best / scale, zero, float(max_code()));
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
  off_grid_ = false;
  return moved;
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

}  // namespace ballast
