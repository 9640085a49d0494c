#include "engine/io/image_resize.h"

#include <algorithm>
#include <cmath>

#include "kernels/check.h"

namespace ballast {
namespace {

constexpr int kPrecision = 22;

double sinc(double x) {
  return x == 0 ? 1 : std::sin(M_PI * x) / (M_PI * x);
}

double filter_value(Resampling filter, double x) {
  x = std::fabs(x);
  switch (filter) {
    case Resampling::bilinear: return x < 1 ? 1 - x : 0;
    case Resampling::lanczos: return x < 3 ? sinc(x) * sinc(x / 3) : 0;
    case Resampling::bicubic: break;
  }
  constexpr double a = -0.5;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

double support_of(Resampling filter) {
  return filter == Resampling::bilinear ? 1 : filter == Resampling::bicubic ? 2 : 3;
}

// The input pixels that make one output pixel.
struct Taps {
  int64_t first;
  std::vector<int32_t> weights;
};

std::vector<Taps> taps_for(int64_t in, int64_t out, Resampling filter, int64_t begin, int64_t count) {
  const double scale = double(in) / double(out), stretch = std::max(scale, 1.0);
  const double support = support_of(filter) * stretch, inverse = 1 / stretch;
  std::vector<Taps> all;
  std::vector<double> weights;
  for (int64_t i = begin; i < begin + count; ++i) {
    const double center = (double(i) + 0.5) * scale;
    const int64_t first = std::max<int64_t>(0, int64_t(center - support + 0.5));
    const int64_t last = std::min(in, int64_t(center + support + 0.5));
    weights.clear();
    double sum = 0;
    for (int64_t j = first; j < last; ++j) {
      weights.push_back(filter_value(filter, (double(j) - center + 0.5) * inverse));
      sum += weights.back();
    }
    Taps taps{first, {}};
    for (const double weight : weights) {
      const double fixed = (sum != 0 ? weight / sum : weight) * double(1 << kPrecision);
      taps.weights.push_back(int32_t(fixed < 0 ? fixed - 0.5 : fixed + 0.5));
    }
    all.push_back(std::move(taps));
  }
  return all;
}

uint8_t rounded(int32_t sum) {
  return uint8_t(std::clamp(sum >> kPrecision, 0, 255));
}

// Output columns `columns` of the input rows from `top` on.
Image along_rows(const Image& in, const std::vector<Taps>& columns, int64_t top, int64_t rows) {
  Image out{int64_t(columns.size()), rows, std::vector<uint8_t>(columns.size() * size_t(3 * rows))};
  for (int64_t y = 0; y < rows; ++y) {
    uint8_t* to = out.pixel(0, y);
    for (const Taps& taps : columns) {
      const uint8_t* from = in.pixel(taps.first, top + y);
      int32_t red = 1 << (kPrecision - 1), green = red, blue = red;
      for (const int32_t weight : taps.weights) {
        red += weight * from[0];
        green += weight * from[1];
        blue += weight * from[2];
        from += 3;
      }
      to[0] = rounded(red);
      to[1] = rounded(green);
      to[2] = rounded(blue);
      to += 3;
    }
  }
  return out;
}

// Output rows `lines`; row 0 of the input is row `top` of what the taps count from.
Image along_columns(const Image& in, const std::vector<Taps>& lines, int64_t top) {
  Image out{in.width, int64_t(lines.size()), std::vector<uint8_t>(lines.size() * size_t(3 * in.width))};
  std::vector<int32_t> sums(size_t(3 * in.width));
  for (size_t y = 0; y < lines.size(); ++y) {
    std::fill(sums.begin(), sums.end(), 1 << (kPrecision - 1));
    const uint8_t* from = in.pixel(0, lines[y].first - top);
    for (const int32_t weight : lines[y].weights) {
      for (size_t i = 0; i < sums.size(); ++i) sums[i] += weight * from[i];
      from += sums.size();
    }
    uint8_t* to = out.pixel(0, int64_t(y));
    for (size_t i = 0; i < sums.size(); ++i) to[i] = rounded(sums[i]);
  }
  return out;
}

Image cropped(const Image& in, const Window& window) {
  Image out{window.width, window.height, {}};
  for (int64_t y = window.top; y < window.top + window.height; ++y)
    out.rgb.insert(out.rgb.end(), in.pixel(window.left, y), in.pixel(window.left, y) + 3 * window.width);
  return out;
}

}  // namespace

Image resize(const Image& image, int64_t width, int64_t height, Resampling filter, const Window& window) {
  CHECK(window.left >= 0 && window.top >= 0 && window.width > 0 && window.height > 0 &&
        window.left + window.width <= width && window.top + window.height <= height);
  // A direction that keeps its size is left alone.
  const bool rows = width != image.width, columns = height != image.height;
  if (!rows && !columns) return cropped(image, window);
  const std::vector<Taps> lines =
      columns ? taps_for(image.height, height, filter, window.top, window.height) : std::vector<Taps>();
  const int64_t top = columns ? lines.front().first : window.top;
  const int64_t bottom = columns ? lines.back().first + int64_t(lines.back().weights.size())
                                 : window.top + window.height;
  const Image narrow =
      rows ? along_rows(image, taps_for(image.width, width, filter, window.left, window.width), top, bottom - top)
           : cropped(image, {window.left, top, window.width, bottom - top});
  return columns ? along_columns(narrow, lines, top) : narrow;
}

}  // namespace ballast
