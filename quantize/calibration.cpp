#include "quantize/calibration.h"

namespace ballast {
namespace {

// Rows of one pass: enough to keep the products efficient, few enough to keep the activations in cache.
constexpr int64_t kRowsPerPart = 1024;

int64_t samples_per_part(int64_t samples, int64_t length) {
  return std::min(samples, std::max<int64_t>(1, kRowsPerPart / length));
}

int64_t positions_per_part(const CalibrationTokens& tokens) {
  if (tokens.images) return 0;
  return samples_per_part(tokens.samples, tokens.length) * KvCache::pages_for(tokens.length) * kPagePositions;
}

}  // namespace

int64_t calibration_part_rows(int64_t samples, int64_t length) {
  return samples_per_part(samples, length) * length;
}

StoredRows::StoredRows(Backend& backend, int64_t rows, int64_t width)
    : halves_(backend, DType::f16, {rows, width}), scales_(backend, DType::f32, {rows}) {}

void StoredRows::store(Backend& backend, int64_t first, const TensorView& x) const {
  const int64_t count = x.shape[0];
  backend.run(StoreHalfRows{
      .x = x, .halves = halves_.view().rows(first, count), .scales = scales_.view().rows(first, count)});
}

void StoredRows::load(Backend& backend, int64_t first, const OutputView& x) const {
  const int64_t count = x.shape[0];
  backend.run(LoadHalfRows{
      .halves = halves_.view().rows(first, count), .scales = scales_.view().rows(first, count), .x = x});
}

HiddenStream::HiddenStream(Backend& backend, nn::Model& model, const CalibrationTokens& tokens)
    : backend_(backend),
      facts_(model.facts()),
      tokens_(tokens),
      samples_per_part_(samples_per_part(tokens.samples, tokens.length)),
      workspace_(backend),
      hidden_(backend, tokens.samples * tokens.length, model.facts().hidden),
      cache_(backend, model.facts(), 1, positions_per_part(tokens)),
      cache_views_(size_t(model.facts().layers), cache_.views()[0]) {
  for (int64_t index = 0; index < parts(); ++index)
    walk_part(
        index, [&](const Part& part) { model.embed(part.context, part.hidden); }, false);
}

void HiddenStream::for_each_part(const std::function<void(const Part&)>& body) {
  for (int64_t index = 0; index < parts(); ++index) with_part(index, body);
}

int64_t HiddenStream::parts() const {
  return (tokens_.samples + samples_per_part_ - 1) / samples_per_part_;
}

// Only the embedding reads patches.
Batch HiddenStream::batch_of(int64_t first, int64_t count, std::vector<PageTable>& pages, bool with_patches) {
  Batch batch;
  if (tokens_.images) {
    batch.add_images(*facts_.image, count);
    for (int64_t i = 0; with_patches && i < count; ++i) tokens_.images.write(first + i, batch.image(i));
    return batch;
  }
  for (int64_t i = 0; i < count; ++i) {
    CHECK(cache_.reserve(pages[size_t(i)], tokens_.length));
    batch.add(std::span(tokens_.ids).subspan(size_t((first + i) * tokens_.length), size_t(tokens_.length)), 0,
              pages[size_t(i)]);
  }
  return batch;
}

void HiddenStream::walk_part(int64_t index, const std::function<void(const Part&)>& body, bool load) {
  const int64_t first = index * samples_per_part_;
  const int64_t count = std::min(samples_per_part_, tokens_.samples - first);
  std::vector<PageTable> pages(static_cast<size_t>(count));
  const Batch batch = batch_of(first, count, pages, !load);
  const nn::BatchRows rows = batch.rows();
  const nn::ForwardContext context{backend_, workspace_, rows, cache_views_};
  Workspace::Scope scope(workspace_);
  const int64_t first_row = first * tokens_.length;
  const OutputView hidden = workspace_.floats({count * tokens_.length, hidden_.width()});
  if (load) hidden_.load(backend_, first_row, hidden);
  body({context, hidden, first_row});
  // Whether or not the pass moved the stream: what was loaded is stored as the same bits.
  hidden_.store(backend_, first_row, hidden);
  for (PageTable& table : pages) cache_.release(table);
}

}  // namespace ballast
