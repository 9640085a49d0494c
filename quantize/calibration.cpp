#include "quantize/calibration.h"

namespace ballast {
namespace {

// Rows of one pass: enough to keep the products efficient, few enough to keep the activations in cache.
constexpr int64_t kRowsPerPart = 1024;

int64_t samples_per_part(const CalibrationTokens& tokens) {
  return std::min(tokens.samples, std::max<int64_t>(1, kRowsPerPart / tokens.length));
}

int64_t positions_per_part(const CalibrationTokens& tokens) {
  return samples_per_part(tokens) * KvCache::pages_for(tokens.length) * kPagePositions;
}

}  // namespace

HiddenStream::HiddenStream(Backend& backend, nn::Model& model, const CalibrationTokens& tokens)
    : backend_(backend),
      tokens_(tokens),
      samples_per_part_(samples_per_part(tokens)),
      workspace_(backend),
      hidden_(backend, DType::f32, {tokens.samples * tokens.length, model.facts().hidden}),
      cache_(backend, model.facts(), 1, positions_per_part(tokens)),
      cache_views_(size_t(model.facts().layers), cache_.views()[0]) {
  for_each_part(nullptr, [&](const Part& part) { model.embed(part.context, part.hidden); });
}

void HiddenStream::for_each_part(StatisticsObserver* observer, const std::function<void(const Part&)>& body) {
  for (int64_t index = 0; index < parts(); ++index) with_part(index, observer, body);
}

int64_t HiddenStream::parts() const {
  return (tokens_.samples + samples_per_part_ - 1) / samples_per_part_;
}

void HiddenStream::with_part(int64_t index, StatisticsObserver* observer,
                             const std::function<void(const Part&)>& body) {
  const int64_t first = index * samples_per_part_;
  const int64_t count = std::min(samples_per_part_, tokens_.samples - first);
  Batch batch;
  std::vector<PageTable> pages(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    CHECK(cache_.reserve(pages[size_t(i)], tokens_.length));
    batch.add(std::span(tokens_.ids).subspan(size_t((first + i) * tokens_.length), size_t(tokens_.length)), 0,
              pages[size_t(i)]);
  }
  const nn::BatchRows rows = batch.rows();
  const nn::ForwardContext context{backend_, workspace_, rows, cache_views_, observer};
  if (observer) observer->positions(rows.positions);
  Workspace::Scope scope(workspace_);
  body({context, hidden_.view().rows(first * tokens_.length, count * tokens_.length),
        first * tokens_.length});
  for (PageTable& table : pages) cache_.release(table);
}

}  // namespace ballast
