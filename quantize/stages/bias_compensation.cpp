#include "quantize/stages/bias_compensation.h"

#include <cmath>

#include "quantize/curvature.h"

namespace ballast {
namespace {

// matrix · vector, matrix f32 [rows, size] row-major
std::vector<double> times(Backend& backend, std::span<const float> matrix,
                          const std::vector<double>& vector) {
  const int64_t size = int64_t(vector.size()), rows = int64_t(matrix.size()) / size;
  std::vector<double> out(static_cast<size_t>(rows));
  backend.parallel_for(rows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      double sum = 0;
      for (int64_t i = 0; i < size; ++i) sum += double(matrix[size_t(row * size + i)]) * vector[size_t(i)];
      out[size_t(row)] = sum;
    }
  });
  return out;
}

// (W − Q)·(E[x | p] − E[x]), f32 [positions, rows]; zeros for positions never seen
std::vector<float> position_errors(Backend& backend, std::span<const float> difference,
                                   const Statistics& input) {
  const int64_t size = input.features, rows = int64_t(difference.size()) / size,
                positions = input.positions();
  const std::vector<double> mean = input.mean();
  std::vector<float> deviations(size_t(size * positions));  // E[x] − E[x | p], [size, positions]
  for (int64_t p = 0; p < positions; ++p) {
    if (input.position_count[size_t(p)] == 0) continue;
    const std::vector<double> here = input.position_mean(p);
    for (int64_t i = 0; i < size; ++i)
      deviations[size_t(i * positions + p)] = float(mean[size_t(i)] - here[size_t(i)]);
  }
  std::vector<float> product(size_t(rows * positions));
  backend.run(RankUpdate{.e = {difference.data(), DType::f32, {rows, size}},
                         .u = {deviations.data(), DType::f32, {size, positions}},
                         .w = {product.data(), DType::f32, {rows, positions}}});
  std::vector<float> out(product.size());
  for (int64_t p = 0; p < positions; ++p)
    for (int64_t r = 0; r < rows; ++r) out[size_t(p * rows + r)] = product[size_t(r * positions + p)];
  return out;
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace

CompensationResult compensate(Backend& backend, std::span<const float> weight,
                              const QuantizedMatrix& quantized, const Statistics& input,
                              const Statistics* reference, Compensation kind, OutputPower power) {
  const int64_t out = out_features(quantized), in = in_features(quantized);
  CHECK(int64_t(weight.size()) == out * in && input.features == in);
  std::vector<float> difference(weight.size());  // W − Q
  backend.parallel_for(out, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* d = difference.data() + row * in;
      decode_row(quantized, row, d);
      for (int64_t i = 0; i < in; ++i) d[i] = weight[size_t(row * in + i)] - d[i];
    }
  });

  CompensationResult result;
  const std::vector<double> mean_error = times(backend, difference, input.mean());  // (W − Q)·E[x]
  std::vector<double> constant(mean_error);
  if (reference) {
    const std::vector<double> float_mean = reference->mean(), mean = input.mean();
    std::vector<double> shift(float_mean);
    for (size_t i = 0; i < shift.size(); ++i) shift[i] -= mean[i];
    const std::vector<double> drift = times(backend, weight, shift);
    for (size_t i = 0; i < constant.size(); ++i) constant[i] += drift[i];
  }
  if (kind == Compensation::none) constant.assign(constant.size(), 0.0);
  result.channel.assign(constant.begin(), constant.end());

  double position_gain = 0;  // E‖(W − Q)(E[x | p] − E[x])‖²
  if (kind == Compensation::position) {
    result.positions = input.positions();
    result.position = position_errors(backend, difference, input);
    for (int64_t p = 0; p < result.positions; ++p) {
      const double share = double(input.position_count[size_t(p)]) / double(input.count);
      for (int64_t r = 0; r < out; ++r)
        position_gain += share * std::pow(double(result.position[size_t(p * out + r)]), 2);
    }
  }

  if (!power && !input.moment.empty())
    power = [&](std::span<const float> a) {
      return quadratic_form(backend, symmetric_view(input.moment, in), a) / double(input.count);
    };
  if (power) {
    const double whole = power(weight), before = power(difference);
    const double after = before - 2 * dot(constant, mean_error) + dot(constant, constant) - position_gain;
    result.error_before = whole > 0 ? before / whole : 0;
    result.error_after = whole > 0 ? std::max(0.0, after) / whole : 0;
  }
  return result;
}

}  // namespace ballast
