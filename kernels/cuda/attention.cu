#include "kernels/ops/attention.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/cuda/attention_rounded.h"
#include "kernels/cuda/attention_rows.h"
#include "kernels/cuda/attention_tiles.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/staged.h"

namespace ballast {

using namespace cuda;

namespace {

// A grid has at most so many blocks in its second dimension.
constexpr int64_t kMostBlocksY = 65535;
// What blocks of positions may leave in memory before they are joined.
constexpr int64_t kMostPartBytes = int64_t(64) << 20;
// Spans of at least so many rows go to the tensor cores.
constexpr int32_t kTileRowsLeast = 16;

bool has_tiles(int64_t head_dim) {
  return head_dim == 64 || head_dim == 80 || head_dim == 128;
}

// Everything that kernels must know of a batch's spans, as one run of numbers.
class Plan {
 public:
  Plan(const Attention& op, bool may_tile) {
    const bool rounded = op.probability_grid.has_value();
    const bool tiled = may_tile && has_tiles(op.q.shape[1] / op.heads);
    for (const AttentionSpan& span : op.spans) {
      const int32_t first_page = int32_t(pages_.size()), length = span.past + span.rows;
      if (op.cache) {
        pages_.insert(pages_.end(), span.pages, span.pages + (length + kPagePositions - 1) / kPagePositions);
        for (int32_t position = span.past; position < length; ++position)
          places_.push_back({span.pages[position / kPagePositions], int32_t(position % kPagePositions)});
      }
      if (rounded) {
        add_tiles(span, first_page, AttendRounded::kRows);
      } else if (tiled && span.rows >= kTileRowsLeast) {
        add_tiles(span, first_page, kQueryTile);
      } else {
        add_rows(span, first_page, op.mask);
      }
    }
    places_at_ = append(places_);
    rows_at_ = append(rows_);
    tiles_at_ = append(tiles_);
    pages_at_ = append(pages_);  // last: they alone become more from one decode step to the next
  }

  const int32_t* upload(Uploads& uploads) {
    device_ = uploads.on_device(numbers_.data(), int64_t(numbers_.size()));
    return device_;
  }
  const int32_t* pages() const { return device_ + pages_at_; }
  const CachePlace* places() const { return reinterpret_cast<const CachePlace*>(device_ + places_at_); }
  const QueryRow* rows() const { return reinterpret_cast<const QueryRow*>(device_ + rows_at_); }
  const QueryTile* tiles() const { return reinterpret_cast<const QueryTile*>(device_ + tiles_at_); }
  int64_t tile_count() const { return int64_t(tiles_.size()); }
  int64_t row_count() const { return int64_t(rows_.size()); }
  int64_t most_visible() const { return most_visible_; }

 private:
  void add_rows(const AttentionSpan& span, int32_t first_page, Mask mask) {
    for (int32_t i = 0; i < span.rows; ++i) {
      const int32_t visible = span.past + (mask == Mask::causal ? i + 1 : span.rows);
      rows_.push_back({span.first_row + i, visible, first_page, span.first_row - span.past});
      most_visible_ = std::max(most_visible_, visible);
    }
  }
  // The late tiles of a causal span see most, so they come first: the small ones fill up the end.
  void add_tiles(const AttentionSpan& span, int32_t first_page, int32_t rows) {
    for (int32_t first = (span.rows - 1) / rows * rows; first >= 0; first -= rows)
      tiles_.push_back({span.first_row + first, std::min(rows, span.rows - first), span.past + first,
                        span.past + span.rows, first_page, span.first_row - span.past});
  }
  template <class Record>
  size_t append(const std::vector<Record>& records) {
    const size_t at = numbers_.size();
    numbers_.resize(at + records.size() * sizeof(Record) / 4);
    if (!records.empty()) std::memcpy(numbers_.data() + at, records.data(), records.size() * sizeof(Record));
    return at;
  }

  std::vector<int32_t> pages_, numbers_;
  std::vector<CachePlace> places_;
  std::vector<QueryRow> rows_;
  std::vector<QueryTile> tiles_;
  size_t pages_at_ = 0, places_at_ = 0, rows_at_ = 0, tiles_at_ = 0;
  int32_t most_visible_ = 0;
  const int32_t* device_ = nullptr;
};

}  // namespace

void CudaBackend::run(const Attention& op) {
  op.check();
  forget_input();
  const int64_t head_dim = op.q.shape[1] / op.heads, tokens = op.q.shape[0];
  if (tokens == 0) return;
  if (op.cache) CHECK(op.cache.contiguous(), "attention: cache has gaps");
  const auto on_host = [](const TensorView& view) { return view && view.device == Device::cpu; };
  if (on_host(op.q) || on_host(op.k) || on_host(op.v) || on_host(op.cache) || on_host(op.out)) {
    const Staged q(machine_, stages_[0], op.q), k(machine_, stages_[1], op.k), v(machine_, stages_[2], op.v),
        cache(machine_, stages_[3], op.cache), out(machine_, stages_[4], op.out, false);
    Attention there = op;
    there.q = q.view(), there.k = k.view(), there.v = v.view();
    there.cache = cache.view(), there.out = out.view();
    run(there);
    cache.put_back();
    return out.put_back();
  }
  // How a prompt was cut must not choose the kernel; an image is always whole.
  Plan plan(op, !deterministic_ || op.mask == Mask::full);
  plan.upload(uploads_);
  const bool coded = op.cache && op.cache.dtype == DType::u8;
  const auto append = [&]<class Kernel, class Element>(const Grid& grid) {
    launch<Kernel>(machine_, grid,
                   {.places = plan.places(),
                    .k = op.k.as<float>(),
                    .v = op.v.as<float>(),
                    .k_stride = op.k.strides[0],
                    .v_stride = op.v.strides[0],
                    .cache = op.cache.as<Element>(),
                    .heads = int(op.heads),
                    .head_dim = int(head_dim)});
  };
  if (coded) {
    append.operator()<AppendCodes, char>({.blocks = tokens, .blocks_y = AppendCodes::blocks_y(op.heads)});
  } else if (op.cache) {
    append.operator()<AppendRows, float>({.blocks = tokens});
  }
  const KeySource keys{.cache = op.cache ? op.cache.as<void>() : nullptr,
                       .coded = coded,
                       .pages = plan.pages(),
                       .k = op.k.as<float>(),
                       .v = op.v.as<float>(),
                       .k_stride = op.k.strides[0],
                       .v_stride = op.v.strides[0],
                       .heads = int(op.heads),
                       .head_dim = int(head_dim)};
  if (op.probability_grid) {
    launch<AttendRounded>(machine_,
                          {.blocks = plan.tile_count(),
                           .blocks_y = op.heads,
                           .shared_bytes = AttendRounded::shared_bytes(head_dim)},
                          {.tiles = plan.tiles(),
                           .keys = keys,
                           .q = op.q.as<float>(),
                           .q_stride = op.q.strides[0],
                           .scale = op.scale,
                           .causal = op.mask == Mask::causal,
                           .grid = GridNumbers::of(*op.probability_grid),
                           .out = op.out.as<float>(),
                           .out_stride = op.out.strides[0]});
    return;
  }
  const auto attend_tiles = [&]<int HeadDim>(std::integral_constant<int, HeadDim>) {
    using Kernel = AttendTiles<HeadDim>;
    if (plan.tile_count() == 0 || head_dim != HeadDim) return;
    launch<Kernel>(machine_,
                   {.blocks = plan.tile_count(), .blocks_y = op.heads, .shared_bytes = Kernel::kSharedBytes},
                   {.tiles = plan.tiles(),
                    .keys = keys,
                    .q = op.q.as<float>(),
                    .q_stride = op.q.strides[0],
                    .scale = op.scale,
                    .causal = op.mask == Mask::causal,
                    .out = op.out.as<float>(),
                    .out_stride = op.out.strides[0]});
  };
  attend_tiles(std::integral_constant<int, 64>());
  attend_tiles(std::integral_constant<int, 80>());
  attend_tiles(std::integral_constant<int, 128>());
  if (plan.row_count() == 0) return;
  // A power of two, so that the launches of a decode step seldom change; blocks beyond what a row sees have nothing to do.
  const int64_t blocks = int64_t(
      std::bit_ceil(uint64_t((plan.most_visible() + AttendRows::kPositions - 1) / AttendRows::kPositions)));
  const int64_t part_bytes = op.heads * blocks * (2 + head_dim) * 4;
  const int64_t at_once =
      std::max<int64_t>(1, std::min(kMostBlocksY / op.heads, kMostPartBytes / part_bytes));
  for (int64_t first = 0; first < plan.row_count(); first += at_once) {
    const int64_t rows = std::min(at_once, plan.row_count() - first);
    launch<AttendRows>(machine_,
                       {.blocks = blocks,
                        .blocks_y = rows * op.heads,
                        .shared_bytes = AttendRows::shared_bytes(head_dim, coded)},
                       {.rows = plan.rows() + first,
                        .keys = keys,
                        .q = op.q.as<float>(),
                        .q_stride = op.q.strides[0],
                        .scale = op.scale,
                        .out = op.out.as<float>(),
                        .out_stride = op.out.strides[0],
                        .parts = parts_.of<float>(rows * op.heads * blocks * (2 + head_dim)),
                        .arrived = arrived_.of<int>(rows * op.heads, true)});
  }
}

}  // namespace ballast
