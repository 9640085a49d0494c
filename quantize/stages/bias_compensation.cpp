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

// E[x] over the tokens of the first position, or over all others.
std::vector<double> mean_of(const Statistics& input, bool first) {
  const double tokens = double(input.position_count[0]), others = double(input.count) - tokens;
  std::vector<double> mean(input.sum);
  for (size_t i = 0; i < mean.size(); ++i)
    mean[i] = first ? input.position_sum[i] / tokens : (mean[i] - input.position_sum[i]) / others;
  return mean;
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// The mean error to take out of the first token's output, or of the others'.
std::vector<double> token_error(Backend& backend, const CompensationProblem& problem,
                                std::span<const float> difference, bool first) {
  const std::vector<double> mean = mean_of(problem.input, first);
  std::vector<double> error = times(backend, difference, mean);
  if (!problem.reference) return error;
  const std::vector<double> wanted = times(backend, problem.weight, mean_of(*problem.reference, first)),
                            predicted = times(backend, problem.target, mean);
  for (size_t i = 0; i < error.size(); ++i) error[i] += wanted[i] - predicted[i];
  const double share = double(problem.input.position_count[0]) / double(problem.input.count);
  for (size_t i = 0; i < problem.residual_drift.size() && !problem.first_drift.empty(); ++i)
    error[i] += first ? problem.first_drift[i]
                      : (problem.residual_drift[i] - share * problem.first_drift[i]) / (1 - share);
  return error;
}

}  // namespace

CompensationResult compensate(Backend& backend, const CompensationProblem& problem) {
  const int64_t out = out_features(problem.quantized), in = in_features(problem.quantized);
  const Statistics& input = problem.input;
  CHECK(int64_t(problem.weight.size()) == out * in && problem.target.size() == problem.weight.size() &&
        input.features == in);
  const std::vector<float> difference = weight_error(backend, problem.target, problem.quantized);

  CompensationResult result;
  const std::vector<double> mean = input.mean();
  const std::vector<double> mean_error = times(backend, difference, mean);  // (target − Q)·E[x]
  // What the float output's mean has beyond target·E[x]: W·E[x_float] − target·E[x].
  std::vector<double> shift(size_t(out), 0.0);
  if (problem.reference) {
    const std::vector<double> wanted = times(backend, problem.weight, problem.reference->mean());
    const std::vector<double> predicted = times(backend, problem.target, mean);
    for (size_t i = 0; i < shift.size(); ++i) shift[i] = wanted[i] - predicted[i];
    for (size_t i = 0; i < problem.residual_drift.size(); ++i) shift[i] += problem.residual_drift[i];
  }
  std::vector<double> constant(mean_error);
  for (size_t i = 0; i < constant.size(); ++i) constant[i] += shift[i];
  if (problem.kind == Compensation::none) constant.assign(constant.size(), 0.0);
  result.channel.assign(constant.begin(), constant.end());

  double position_gain = 0;  // E‖(target − Q)(E[x | p] − E[x])‖²
  if (problem.kind == Compensation::position) {
    result.positions = input.positions();
    result.position = position_errors(backend, difference, input);
    for (int64_t p = 0; p < result.positions; ++p) {
      const double share = double(input.position_count[size_t(p)]) / double(input.count);
      for (int64_t r = 0; r < out; ++r)
        position_gain += share * std::pow(double(result.position[size_t(p * out + r)]), 2);
    }
  }

  const bool apart = problem.kind == Compensation::token && input.position_count[0] > 0 &&
                     input.position_count[0] < input.count;
  if (apart) {
    const std::vector<double> others = token_error(backend, problem, difference, false),
                              first = token_error(backend, problem, difference, true);
    const double share = double(input.position_count[0]) / double(input.count);
    result.positions = 1;
    result.channel.assign(others.begin(), others.end());
    for (size_t i = 0; i < first.size(); ++i) {
      result.position.push_back(float(first[i] - others[i]));
      position_gain += share * (1 - share) * std::pow(first[i] - others[i], 2);
    }
  }

  auto power = problem.power;
  if (!power && !input.moment.empty())
    power = [&](std::span<const float> a) {
      return quadratic_form(backend, symmetric_view(input.moment, in), a) / double(input.count);
    };
  if (power) {
    const double whole = power(problem.weight);
    const double before = power(difference) + 2 * dot(shift, mean_error) + dot(shift, shift);
    const double after = before - 2 * dot(constant, mean_error) - 2 * dot(constant, shift) +
                         dot(constant, constant) - position_gain;
    result.error_before = whole > 0 ? before / whole : 0;
    result.error_after = whole > 0 ? std::max(0.0, after) / whole : 0;
  }
  return result;
}

}  // namespace ballast
