#include "quantize/range_fold.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace ballast {
namespace {

std::vector<float> dense_weight(Backend& backend, const nn::Linear& layer) {
  const int64_t out = layer.out_features(), in = layer.in_features();
  std::vector<float> values(size_t(out * in));
  std::vector<int32_t> rows(static_cast<size_t>(out));
  std::iota(rows.begin(), rows.end(), 0);
  layer.weight.visit([&]<class View>(const View& view) {
    backend.run(Embedding<View>{.ids = {rows.data(), DType::i32, {out}},
                                .table = view,
                                .y = OutputView(values.data(), DType::f32, {out, in})});
  });
  return values;
}

}  // namespace

RangeFold fit_fold(const TensorView& x, double tail) {
  const int64_t tokens = x.shape[0], features = x.shape[1];
  CHECK(tokens > 0 && tail >= 0 && tail < 0.5);
  const int64_t out = int64_t(tail * double(tokens));
  std::vector<float> column(static_cast<size_t>(tokens));
  std::vector<double> half(static_cast<size_t>(features)), middle(half);
  double logs = 0;
  for (int64_t i = 0; i < features; ++i) {
    for (int64_t t = 0; t < tokens; ++t) column[size_t(t)] = x.row(t)[i];
    const auto nth = [&](int64_t index) {
      std::nth_element(column.begin(), column.begin() + index, column.end());
      return double(column[size_t(index)]);
    };
    const double low = nth(out), high = nth(tokens - 1 - out);
    half[size_t(i)] = std::max((high - low) / 2, 1e-6);
    middle[size_t(i)] = (high + low) / 2;
    logs += std::log(half[size_t(i)]) / double(features);
  }
  const double common = std::exp(logs);
  RangeFold fold;
  for (int64_t i = 0; i < features; ++i) {
    const double factor = std::clamp(half[size_t(i)] / common, 1e-3, 1e3);
    fold.factor.push_back(float(factor));
    fold.shift.push_back(float(middle[size_t(i)] / factor));
  }
  return fold;
}

void fold_values(const RangeFold& fold, const OutputView& x) {
  for (int64_t t = 0; t < x.shape[0]; ++t)
    for (int64_t i = 0; i < x.shape[1]; ++i)
      x.row(t)[i] = x.row(t)[i] / fold.factor[size_t(i)] - fold.shift[size_t(i)];
}

void fold_weight(const RangeFold& fold, std::vector<float>& weight) {
  const size_t in = fold.factor.size();
  for (size_t i = 0; i < weight.size(); ++i) weight[i] *= fold.factor[i % in];
}

void fold_branch(Backend& backend, const RangeFold& fold, nn::Branch& branch) {
  CHECK(branch.norm_place == nn::NormPlace::before && branch.norm.weight);
  const auto in = int64_t(fold.factor.size());
  std::vector<float> gain = branch.norm.weight.to_floats(), offset = branch.norm.bias.to_floats();
  for (size_t i = 0; i < gain.size(); ++i) {
    gain[i] /= fold.factor[i];
    offset[i] = offset[i] / fold.factor[i] - fold.shift[i];
  }
  branch.norm.weight = Tensor::from_floats(backend, gain, {in});
  branch.norm.bias = Tensor::from_floats(backend, offset, {in});
  for (nn::Linear* layer : branch.expand()) {
    const int64_t out = layer->out_features();
    std::vector<float> weight = dense_weight(backend, *layer);
    fold_weight(fold, weight);
    std::vector<float> bias = layer->bias ? layer->bias.to_floats() : std::vector<float>(size_t(out));
    for (int64_t row = 0; row < out; ++row) {
      double sum = 0;
      for (int64_t i = 0; i < in; ++i)
        sum += double(weight[size_t(row * in + i)]) * double(fold.shift[size_t(i)]);
      bias[size_t(row)] += float(sum);
    }
    layer->weight = Weight::dense(backend, {weight.data(), DType::f32, {out, in}});
    layer->bias = Tensor::from_floats(backend, bias, {out});
  }
}

}  // namespace ballast
