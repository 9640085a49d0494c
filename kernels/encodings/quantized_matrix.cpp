#include "kernels/encodings/quantized_matrix.h"

#include "kernels/check.h"

namespace ballast {
namespace {

template <class Value>
void append(std::vector<Value>& all, const std::vector<Value>& part) {
  all.insert(all.end(), part.begin(), part.end());
}

void append_rows(AffineMatrix& all, const AffineMatrix& part) {
  CHECK(all.in_features == part.in_features && all.bits == part.bits && all.group_size == part.group_size &&
        all.half_zeros == part.half_zeros);
  all.out_features += part.out_features;
  append(all.codes, part.codes);
  append(all.scales, part.scales);
  append(all.zero_points, part.zero_points);
}

void append_rows(SparseOutlierMatrix& all, const SparseOutlierMatrix& part) {
  CHECK(all.in_features == part.in_features && all.bits == part.bits && all.group_size == part.group_size &&
        all.stat_bits == part.stat_bits && all.out_features % SparseOutlierMatrix::kStatRows == 0);
  const uint32_t before = all.outlier_rows.back();
  all.out_features += part.out_features;
  append(all.codes, part.codes);
  append(all.scale_codes, part.scale_codes);
  append(all.zero_codes, part.zero_codes);
  append(all.stats, part.stats);
  for (size_t row = 1; row < part.outlier_rows.size(); ++row)
    all.outlier_rows.push_back(before + part.outlier_rows[row]);
  append(all.outlier_columns, part.outlier_columns);
  append(all.outlier_values, part.outlier_values);
}

void append_rows(ResidualBinaryMatrix&, const ResidualBinaryMatrix&) {
  CHECK(false, "rows of a residual binary matrix share their salient columns");
}

}  // namespace

void append_rows(QuantizedMatrix& all, const QuantizedMatrix& part) {
  CHECK(all.index() == part.index());
  std::visit([&]<class Matrix>(Matrix& matrix) { append_rows(matrix, std::get<Matrix>(part)); }, all);
}

}  // namespace ballast
