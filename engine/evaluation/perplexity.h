// Perplexity of a model on a token sequence, exp of the mean negative log-likelihood, by the two protocols in
// use; and how far a model is from a reference (usually its float original) on the same windows.
//
//   gptq      windows of `context` tokens laid end to end over the text, the rest dropped; every token of a window but
//             the first is a target (arXiv 2210.17323, its evaluation code). The text is tokenized once, so only the
//             first window starts with the beginning-of-text token.
//   llamacpp  as above, but each window's first token is replaced by the beginning-of-text token and only its second
//             half is scored: targets from context/2 + 1 on (llama.cpp's perplexity tool).
// Figures of the two differ and must not be compared.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "engine/runtime/kv_cache.h"

namespace ballast {

enum class Protocol : uint8_t { gptq, llamacpp };
const char* name_of(Protocol protocol);
/// Error unless `name` is gptq or llamacpp.
Protocol protocol_from(const std::string& name);

struct PerplexityOptions {
  Protocol protocol = Protocol::gptq;
  int64_t context = 0;  ///< tokens of a window; 0: min(2048, the model's positions), 512 at most for llamacpp
  int64_t stride =
      0;  ///< gptq: tokens between window starts; a window scores what none before has; 0: context
  int64_t first_window = 0;    ///< windows left out at the beginning
  int64_t windows = 0;         ///< evaluated at most; 0: all
  int32_t bos_id = -1;         ///< needed by llamacpp
  int64_t pass_tokens = 2048;  ///< windows run together up to so many tokens
  CacheType cache_type = CacheType::f32;  ///< of the model's keys and values; a reference's are f32
};

/// tokens [first, first + context) with targets first + first_target … first + context − 1.
struct Window {
  int64_t first = 0;
  int64_t first_target = 1;
  bool operator==(const Window&) const = default;
};

/// Resolves `context` and `stride` and lays out the windows. Error when an option is out of range or the text
/// is shorter than one window.
std::vector<Window> plan_windows(int64_t tokens, int64_t max_positions, PerplexityOptions& options);

/// KL(reference ‖ model) per target in nats, and how the targets' probabilities moved.
struct ReferenceComparison {
  double perplexity = 0;  ///< of the reference
  double nll = 0;
  double kl_mean = 0, kl_median = 0, kl_p90 = 0, kl_p99 = 0, kl_max = 0;
  double kl_standard_error = 0;    ///< of kl_mean
  double top1_agreement = 0;       ///< share of targets with the same likeliest token, 0 to 1
  double rms_delta_p = 0;          ///< root mean square of p_model(target) − p_reference(target)
  double ln_perplexity_ratio = 0;  ///< nll − the reference's
};

struct PerplexityResult {
  double perplexity = 0;
  double nll = 0;                 ///< mean over targets, nats
  double nll_standard_error = 0;  ///< of the mean, targets taken as independent
  double standard_error = 0;      ///< of the perplexity: perplexity · nll_standard_error
  int64_t tokens = 0;             ///< scored targets
  int64_t text_tokens = 0;
  int64_t windows = 0;
  int64_t context = 0;
  int64_t stride = 0;
  std::vector<double> window_nll;  ///< mean over the targets of each window
  std::optional<ReferenceComparison> reference;
};

struct PerplexityProgress {
  int64_t windows_done = 0;
  int64_t windows_total = 0;
  double perplexity = 0;          ///< so far
  std::optional<double> kl_mean;  ///< so far, with a reference
};

/// Runs the windows of `ids` through `model` (and `reference`, when not null, in the same pass: nothing is
/// stored). `on_progress` is called after every pass and may throw to stop. Error when the reference has
/// another vocabulary or fewer positions than a window, or an id is outside the vocabulary.
PerplexityResult measure_perplexity(Backend& backend, nn::Model& model, nn::Model* reference,
                                    const std::vector<int32_t>& ids, PerplexityOptions options,
                                    const std::function<void(const PerplexityProgress&)>& on_progress = {});

}  // namespace ballast
