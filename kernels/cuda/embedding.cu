#include "kernels/ops/embedding.h"

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear_rows.h"
#include "kernels/cuda/staged.h"
#include "kernels/cuda/weight_blob.h"
#include "kernels/ops/gather.h"

namespace ballast {

using namespace cuda;

namespace {

// Rows of a table; `Table::get(row, column)` is one value. Work partition: a block owns 256 columns of a token.
template <class Table>
struct EmbedRows {
  static constexpr int kThreads = 256, kBlocks = 4;
  struct Args {
    Table table;
    const int32_t* ids;
    int hidden;
    bool accumulate;
    float* y;
    int64_t y_stride;
  };

  static BALLAST_DEVICE void run(const Args& args) {
    const int token = dev::block(), column = dev::block_y() * kThreads + dev::thread();
    if (column >= args.hidden) return;
    float* y = args.y + token * args.y_stride + column;
    const float value = args.table.get(args.ids[token], column);
    *y = args.accumulate ? *y + value : value;
  }
};

template <class Stored>
struct RowTable {
  const void* data;
  int64_t stride;
  BALLAST_DEVICE float get(int row, int column) const { return Stored::get(data, row * stride + column); }
};

struct FragmentTable {
  const uint32_t* codes;
  const AffineMeta* meta;
  int bits, units, groups, group_size;
  BALLAST_DEVICE float get(int row, int column) const {
    const int64_t tile = row / kTileRows;
    const uint32_t* words = codes + (tile * units + column / kUnitColumns) * 32 * words_of(bits);
    const AffineMeta& group = meta[tile * groups + column / group_size];
    const int code = code_in_unit(words, bits, row % kTileRows, column % kUnitColumns);
    return dev::half_to_float(group.scales[row % kTileRows]) *
           (float(code) - AffineMeta::zero_unit(bits) * float(group.zeros[row % kTileRows]));
  }
};

struct OutlierTable {
  const uint32_t* codes;
  const RealMeta* meta;
  const uint32_t* begins;
  const uint32_t* outliers;
  int bits, units, stages, groups, group_size;
  BALLAST_DEVICE float get(int row, int column) const {
    const int64_t tile = row / kTileRows;
    const int within = row % kTileRows;
    const int64_t list = outlier_list(tile, stages, column / kStageColumns, within);
    for (uint32_t i = begins[list]; i < begins[list + 1]; ++i)
      if (outlier_column(outliers[i]) == column % kStageColumns &&
          outlier_is_low(outliers[i]) == (within < 8))
        return dev::half_to_float(uint16_t(outliers[i] >> 16));
    const uint32_t* words = codes + (tile * units + column / kUnitColumns) * 32 * words_of(bits);
    const RealMeta& group = meta[tile * groups + column / group_size];
    return group.scales[within] *
           (float(code_in_unit(words, bits, within, column % kUnitColumns)) - group.zero_points[within]);
  }
};

template <class Half>
struct BinaryTable {
  const uint32_t* codes;
  const TableMeta* meta;
  const uint32_t* salient;
  int units, blocks, block_size;
  BALLAST_DEVICE float get(int row, int column) const {
    const int64_t tile = row / kTileRows;
    const uint32_t* words = codes + (tile * units + column / kUnitColumns) * 32 * words_of(2);
    const int code = code_in_unit(words, 2, row % kTileRows, column % kUnitColumns);
    const int kind = (salient[column / 2] >> 16 * (column % 2) & 1) ? 4 : 0;
    const uint16_t value = meta[tile * blocks + column / block_size].values[row % kTileRows][kind + code];
    return Half::kType == DType::f16 ? dev::half_to_float(value) : dev::bfloat_to_float(value);
  }
};

template <class Table>
void embed(Machine& machine, DeviceScratch& scratch, const Table& table, const int32_t* ids, bool accumulate,
           const OutputView& any_y) {
  if (any_y.shape[0] == 0) return;
  const Staged staged(machine, scratch, any_y, accumulate);
  const OutputView y = staged.view();
  using Kernel = EmbedRows<Table>;
  launch<Kernel>(machine,
                 {.blocks = y.shape[0], .blocks_y = (y.shape[1] + Kernel::kThreads - 1) / Kernel::kThreads},
                 {.table = table,
                  .ids = ids,
                  .hidden = int(y.shape[1]),
                  .accumulate = accumulate,
                  .y = y.as<float>(),
                  .y_stride = y.strides[0]});
  staged.put_back();
}

template <class Encoding>
RowTable<StoredF32> decoded_table(const Encoding& weight) {
  return {weight.data.data, weight.in_features};
}

template <class T>
const T* part_of(const TensorView& blob, int64_t at) {
  return reinterpret_cast<const T*>(blob.as<char>() + at);
}

FragmentTable packed_table(const AffineView& weight) {
  const FragmentBlob sizes(weight);
  return {.codes = part_of<uint32_t>(weight.data, 0),
          .meta = part_of<AffineMeta>(weight.data, sizes.meta_at),
          .bits = weight.bits,
          .units = int(sizes.units),
          .groups = int(sizes.groups),
          .group_size = int(weight.group_size)};
}

OutlierTable packed_table(const SparseOutlierView& weight) {
  const FragmentBlob sizes(weight);
  return {.codes = part_of<uint32_t>(weight.data, 0),
          .meta = part_of<RealMeta>(weight.data, sizes.meta_at),
          .begins = part_of<uint32_t>(weight.data, sizes.begins_at),
          .outliers = part_of<uint32_t>(weight.data, sizes.outliers_at),
          .bits = weight.bits,
          .units = int(sizes.units),
          .stages = int(sizes.stages),
          .groups = int(sizes.groups),
          .group_size = int(weight.group_size)};
}

template <class Half>
BinaryTable<Half> packed_table(const ResidualBinaryView& weight) {
  const FragmentBlob sizes(weight);
  return {.codes = part_of<uint32_t>(weight.data, 0),
          .meta = part_of<TableMeta>(weight.data, sizes.meta_at),
          .salient = part_of<uint32_t>(weight.data, sizes.begins_at),
          .units = int(sizes.units),
          .blocks = int(sizes.groups),
          .block_size = int(weight.block_size)};
}

}  // namespace

void CudaBackend::run(const Embedding<DenseView>& op) {
  op.check();
  forget_input();
  const int32_t* ids = numbers(op.ids);
  const auto look_up = [&]<class Stored>(Stored) {
    embed(machine_, stages_[0], RowTable<Stored>{op.table.data.data, op.table.in_features}, ids,
          op.accumulate, op.y);
  };
  if (op.table.dtype == DType::f32) return look_up(StoredF32());
  if (op.table.dtype == DType::f16) return look_up(StoredF16());
  look_up(StoredBF16());
}

template <class Encoding, class Table>
void CudaBackend::look_up(const Embedding<Encoding>& op, Table (*packed)(const Encoding& weight)) {
  op.check();
  forget_input();
  const int32_t* ids = numbers(op.ids);
  if (form_of(op.table) == WeightForm::rows)
    return embed(machine_, stages_[0], decoded_table(op.table), ids, op.accumulate, op.y);
  embed(machine_, stages_[0], packed(op.table), ids, op.accumulate, op.y);
}

void CudaBackend::run(const Embedding<AffineView>& op) {
  look_up<AffineView, FragmentTable>(op, packed_table);
}
void CudaBackend::run(const Embedding<SparseOutlierView>& op) {
  look_up<SparseOutlierView, OutlierTable>(op, packed_table);
}
void CudaBackend::run(const Embedding<ResidualBinaryView>& op) {
  if (half_ == DType::bf16) return look_up(op, packed_table<dev::BF16>);
  look_up(op, packed_table<dev::F16>);
}

void CudaBackend::run(const GatherRows& op) {
  op.check();
  forget_input();
  const Staged x(machine_, stages_[1], op.x);
  embed(machine_, stages_[0], RowTable<StoredF32>{x.as<float>(), x.stride()}, numbers(op.rows), false, op.y);
}

}  // namespace ballast
