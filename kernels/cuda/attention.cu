#include "kernels/ops/attention.h"

#include <algorithm>
#include <cstring>

#include "kernels/cuda/attention_rows.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"

namespace ballast {

using namespace cuda;

namespace {

// A grid has at most so many blocks in its second dimension.
constexpr int64_t kMostBlocksY = 65535;

// Everything that kernels must know of a batch's spans, as one run of numbers.
class Plan {
 public:
  explicit Plan(const Attention& op) {
    for (const AttentionSpan& span : op.spans) {
      const int32_t first_page = int32_t(pages_.size()), length = span.past + span.rows;
      if (op.cache)
        pages_.insert(pages_.end(), span.pages, span.pages + (length + kPagePositions - 1) / kPagePositions);
      for (int32_t i = 0; i < span.rows; ++i) {
        const int32_t position = span.past + i;
        if (op.cache)
          places_.push_back({span.pages[position / kPagePositions], int32_t(position % kPagePositions)});
        const int32_t visible = op.mask == Mask::causal ? position + 1 : length;
        rows_.push_back({span.first_row + i, visible, first_page, span.first_row - span.past});
        most_visible_ = std::max(most_visible_, visible);
      }
    }
    append(pages_);
    places_at_ = append(places_);
    rows_at_ = append(rows_);
  }

  const int32_t* upload(Uploads& uploads) {
    device_ = uploads.on_device(numbers_.data(), int64_t(numbers_.size()));
    return device_;
  }
  const int32_t* pages() const { return device_; }
  const CachePlace* places() const { return reinterpret_cast<const CachePlace*>(device_ + places_at_); }
  const QueryRow* rows() const { return reinterpret_cast<const QueryRow*>(device_ + rows_at_); }
  int64_t row_count() const { return int64_t(rows_.size()); }
  int64_t most_visible() const { return most_visible_; }

 private:
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
  size_t places_at_ = 0, rows_at_ = 0;
  int32_t most_visible_ = 0;
  const int32_t* device_ = nullptr;
};

}  // namespace

void CudaBackend::run(const Attention& op) {
  op.check();
  const int64_t head_dim = op.q.shape[1] / op.heads, tokens = op.q.shape[0];
  if (tokens == 0) return;
  if (op.cache) CHECK(op.cache.contiguous(), "attention: cache has gaps");
  Plan plan(op);
  plan.upload(spans_);
  if (op.cache)
    launch<AppendRows>(machine_, {.blocks = tokens},
                       {.places = plan.places(),
                        .k = op.k.as<float>(),
                        .v = op.v.as<float>(),
                        .k_stride = op.k.strides[0],
                        .v_stride = op.v.strides[0],
                        .cache = op.cache.as<float>(),
                        .heads = int(op.heads),
                        .head_dim = int(head_dim)});
  const KeySource keys{.cache = op.cache ? op.cache.as<float>() : nullptr,
                       .pages = plan.pages(),
                       .k = op.k.as<float>(),
                       .v = op.v.as<float>(),
                       .k_stride = op.k.strides[0],
                       .v_stride = op.v.strides[0],
                       .heads = int(op.heads),
                       .head_dim = int(head_dim)};
  const int64_t blocks = (plan.most_visible() + AttendRows::kPositions - 1) / AttendRows::kPositions;
  const int64_t at_once = std::max<int64_t>(1, kMostBlocksY / op.heads);
  for (int64_t first = 0; first < plan.row_count(); first += at_once) {
    const int64_t rows = std::min(at_once, plan.row_count() - first);
    launch<AttendRows>(
        machine_,
        {.blocks = blocks, .blocks_y = rows * op.heads, .shared_bytes = AttendRows::shared_bytes(head_dim)},
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
