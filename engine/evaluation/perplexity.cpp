#include "engine/evaluation/perplexity.h"

#include <algorithm>
#include <cmath>

#include "engine/evaluation/token_scores.h"
#include "engine/runtime/runner.h"

namespace ballast {
namespace {

// Logits of one step at most: 64 MiB, so that a vocabulary of 50,000 does not need hundreds.
constexpr int64_t kLogitFloats = int64_t(16) << 20;

// One model running whole windows: its cache holds the windows of one pass.
class WindowRunner {
 public:
  WindowRunner(Backend& backend, nn::Model& model, int64_t windows, int64_t context, CacheType cache_type)
      : backend_(backend),
        cache_(backend, model.facts(), model.facts().layers,
               windows * KvCache::pages_for(context) * kPagePositions, cache_type),
        runner_(backend, model, cache_),
        pages_(size_t(windows)) {
    for (PageTable& table : pages_) CHECK(cache_.reserve(table, context));
  }

  void run(const std::vector<std::vector<int32_t>>& windows) {
    batch_.clear();
    for (size_t i = 0; i < windows.size(); ++i) batch_.add(windows[i], 0, pages_[i]);
    hidden_ = runner_.hidden(batch_);
  }

  /// Logits of rows [first, first + rows) of the pass, on the host; valid until the next call.
  const float* logits(int64_t first, int64_t rows) {
    const TensorView out =
        runner_.logits(hidden_.rows(first, rows), batch_.rows().positions.rows(first, rows));
    if (out.device == Device::cpu) return out.as<float>();
    host_.resize(size_t(out.shape.elements()));
    backend_.copy_to_host(host_.data(), out.data, out.bytes());
    return host_.data();
  }

 private:
  Backend& backend_;
  KvCache cache_;
  Runner runner_;
  std::vector<PageTable> pages_;
  Batch batch_;
  TensorView hidden_;
  std::vector<float> host_;
};

struct Moments {
  double sum = 0, squares = 0;
  int64_t count = 0;

  void add(double value) {
    sum += value;
    squares += value * value;
    ++count;
  }
  double mean() const { return sum / double(count); }
  double standard_error() const {
    if (count < 2) return 0;
    const double variance = std::max(0.0, squares / double(count) - mean() * mean());
    return std::sqrt(variance / double(count - 1));
  }
};

class Measurement {
 public:
  Measurement(Backend& backend, nn::Model& model, nn::Model* reference, const std::vector<int32_t>& ids,
              const PerplexityOptions& options, int64_t windows_at_once)
      : backend_(backend),
        ids_(ids),
        options_(options),
        vocab_(model.facts().vocab),
        model_(backend, model, windows_at_once, options.context, options.cache_type) {
    if (reference) reference_.emplace(backend, *reference, windows_at_once, options.context, CacheType::f32);
  }

  void run(std::span<const Window> windows);
  PerplexityProgress progress(int64_t total) const;
  PerplexityResult result();

 private:
  void score(const std::vector<int32_t>& window, int64_t first_row, int64_t first_target);
  ReferenceComparison comparison();

  Backend& backend_;
  const std::vector<int32_t>& ids_;
  const PerplexityOptions& options_;
  int64_t vocab_;
  WindowRunner model_;
  std::optional<WindowRunner> reference_;
  std::vector<ComparedScore> scores_;  ///< of the window being scored
  Moments nll_, reference_nll_, kl_;
  double delta_p_squares_ = 0;
  int64_t agreements_ = 0;
  std::vector<float> kls_;  ///< of every target, for the percentiles
  std::vector<double> window_nll_;
};

void Measurement::run(std::span<const Window> windows) {
  std::vector<std::vector<int32_t>> batch;
  for (const Window& window : windows) {
    const auto begin = ids_.begin() + std::ptrdiff_t(window.first);
    batch.emplace_back(begin, begin + std::ptrdiff_t(options_.context));
    if (options_.protocol == Protocol::llamacpp) batch.back().front() = options_.bos_id;
  }
  model_.run(batch);
  if (reference_) reference_->run(batch);
  for (size_t i = 0; i < windows.size(); ++i)
    score(batch[i], int64_t(i) * options_.context, windows[i].first_target);
}

// `first_row`: where the window begins in the pass. The row of token j scores token j + 1.
void Measurement::score(const std::vector<int32_t>& window, int64_t first_row, int64_t first_target) {
  const int64_t at_once = std::max<int64_t>(16, kLogitFloats / vocab_);
  double window_sum = 0;
  for (int64_t first = first_target; first < options_.context; first += at_once) {
    const int64_t rows = std::min(at_once, options_.context - first);
    const float* logits = model_.logits(first_row + first - 1, rows);
    const float* reference = reference_ ? reference_->logits(first_row + first - 1, rows) : nullptr;
    scores_.assign(size_t(rows), {});
    backend_.parallel_for(rows, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const std::span<const float> own(logits + row * vocab_, size_t(vocab_));
        const int32_t target = window[size_t(first + row)];
        ComparedScore& score = scores_[size_t(row)];
        if (reference) {
          score = compare_token(own, {reference + row * vocab_, size_t(vocab_)}, target);
        } else {
          score.model = score_token(own, target);
        }
      }
    });
    for (const ComparedScore& score : scores_) {
      nll_.add(score.model.nll);
      window_sum += score.model.nll;
      if (!reference) continue;
      reference_nll_.add(score.reference.nll);
      kl_.add(score.kl);
      kls_.push_back(float(score.kl));
      agreements_ += score.model.likeliest == score.reference.likeliest ? 1 : 0;
      const double moved = std::exp(-score.model.nll) - std::exp(-score.reference.nll);
      delta_p_squares_ += moved * moved;
    }
  }
  window_nll_.push_back(window_sum / double(options_.context - first_target));
}

PerplexityProgress Measurement::progress(int64_t total) const {
  PerplexityProgress progress{.windows_done = int64_t(window_nll_.size()), .windows_total = total};
  progress.perplexity = std::exp(nll_.mean());
  if (reference_) progress.kl_mean = kl_.mean();
  return progress;
}

ReferenceComparison Measurement::comparison() {
  std::sort(kls_.begin(), kls_.end());
  const auto percentile = [&](double share) {
    return double(kls_[size_t(share * double(kls_.size() - 1) + 0.5)]);
  };
  const double targets = double(kls_.size());
  return {.perplexity = std::exp(reference_nll_.mean()),
          .nll = reference_nll_.mean(),
          .kl_mean = kl_.mean(),
          .kl_median = percentile(0.5),
          .kl_p90 = percentile(0.9),
          .kl_p99 = percentile(0.99),
          .kl_max = percentile(1),
          .kl_standard_error = kl_.standard_error(),
          .top1_agreement = double(agreements_) / targets,
          .rms_delta_p = std::sqrt(delta_p_squares_ / targets),
          .ln_perplexity_ratio = nll_.mean() - reference_nll_.mean()};
}

PerplexityResult Measurement::result() {
  PerplexityResult result;
  result.nll = nll_.mean();
  result.perplexity = std::exp(result.nll);
  result.nll_standard_error = nll_.standard_error();
  result.standard_error = result.perplexity * result.nll_standard_error;
  result.tokens = nll_.count;
  result.text_tokens = int64_t(ids_.size());
  result.windows = int64_t(window_nll_.size());
  result.context = options_.context;
  result.stride = options_.stride;
  result.window_nll = std::move(window_nll_);
  if (reference_) result.reference = comparison();
  return result;
}

void require_range(const char* flag, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) throw Error(str(flag, " is ", value, ", expected ", low, " to ", high));
}

}  // namespace

const char* name_of(Protocol protocol) {
  return protocol == Protocol::gptq ? "gptq" : "llamacpp";
}

Protocol protocol_from(const std::string& name) {
  for (const Protocol protocol : {Protocol::gptq, Protocol::llamacpp})
    if (name == name_of(protocol)) return protocol;
  throw Error(str("--protocol is \"", name, "\", expected gptq or llamacpp"));
}

std::vector<Window> plan_windows(int64_t tokens, int64_t max_positions, PerplexityOptions& options) {
  const bool halves = options.protocol == Protocol::llamacpp;
  if (options.context == 0) options.context = std::min<int64_t>(halves ? 512 : 2048, max_positions);
  require_range("--ctx", options.context, halves ? 4 : 2, max_positions);
  if (halves && options.stride != 0) throw Error("--stride goes with --protocol gptq only");
  if (halves && options.bos_id < 0)
    throw Error("--protocol llamacpp needs a beginning-of-text token, and this tokenizer has none");
  if (options.stride == 0) options.stride = options.context;
  require_range("--stride", options.stride, 1, options.context);
  if (tokens < options.context)
    throw Error(str("the text has ", tokens, " tokens, expected at least one window of ", options.context,
                    " (a smaller --ctx would do)"));
  const int64_t total = (tokens - options.context) / options.stride + 1;
  require_range("--from-chunk", options.first_window, 0, total - 1);
  if (options.windows < 0) throw Error(str("--chunks is ", options.windows, ", expected 0 or more"));
  const int64_t left = total - options.first_window;
  const int64_t count = options.windows == 0 ? left : std::min(left, options.windows);
  std::vector<Window> windows;
  for (int64_t i = 0; i < count; ++i) {
    const bool first = i == 0;
    // Where windows overlap, each but the first scores only what the one before it did not reach.
    const int64_t own = first ? 1 : std::max<int64_t>(1, options.context - options.stride);
    windows.push_back({(options.first_window + i) * options.stride, halves ? options.context / 2 + 1 : own});
  }
  return windows;
}

PerplexityResult measure_perplexity(Backend& backend, nn::Model& model, nn::Model* reference,
                                    const std::vector<int32_t>& ids, PerplexityOptions options,
                                    const std::function<void(const PerplexityProgress&)>& on_progress) {
  const nn::ModelFacts& facts = model.facts();
  const std::vector<Window> windows = plan_windows(int64_t(ids.size()), facts.max_positions, options);
  for (const int32_t id : ids)
    if (id < 0 || id >= facts.vocab)
      throw Error(str("the text has token id ", id, ", outside the model's vocabulary of ", facts.vocab));
  if (reference && reference->facts().vocab != facts.vocab)
    throw Error(str("the reference model has a vocabulary of ", reference->facts().vocab,
                    ", expected the model's ", facts.vocab));
  if (reference && reference->facts().max_positions < options.context)
    throw Error(str("the reference model has ", reference->facts().max_positions,
                    " positions, a window needs ", options.context));
  const int64_t at_once = std::clamp<int64_t>(options.pass_tokens / options.context, 1,
                                              std::max<int64_t>(1, int64_t(windows.size())));
  Measurement measurement(backend, model, reference, ids, options, at_once);
  for (size_t first = 0; first < windows.size(); first += size_t(at_once)) {
    measurement.run(std::span(windows).subspan(first, std::min(size_t(at_once), windows.size() - first)));
    if (on_progress) on_progress(measurement.progress(int64_t(windows.size())));
  }
  return measurement.result();
}

}  // namespace ballast
