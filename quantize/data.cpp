#include "quantize/data.h"

#include <algorithm>
#include <bit>
#include <random>

#include "engine/runtime/engine.h"

namespace ballast {

CalibrationTokens CalibrationTokens::first(int64_t count) const {
  CalibrationTokens part{std::min(samples, count), length, {}, source, images};
  if (!images) part.ids.assign(ids.begin(), ids.begin() + std::ptrdiff_t(part.samples * length));
  return part;
}

uint64_t CalibrationTokens::hash() const {
  uint64_t hash = 0xcbf29ce484222325u;
  const auto add = [&hash](uint32_t word) {
    for (int shift = 0; shift < 32; shift += 8) hash = (hash ^ (word >> shift & 0xFFu)) * 0x100000001b3u;
  };
  for (const int32_t id : ids) add(uint32_t(id));
  std::vector<float> values(size_t(images.values));
  for (int64_t i = 0; images && i < samples; ++i) {
    images.write(i, values);
    for (const float value : values) add(std::bit_cast<uint32_t>(value));
  }
  return hash;
}

CalibrationTokens calibration_from_text(const std::string& text, const std::string& source,
                                        const Tokenizer& tokenizer, int64_t samples, int64_t length,
                                        uint64_t seed) {
  const std::vector<int32_t> all = tokenizer.encode(text, false);
  if (int64_t(all.size()) < length)
    throw Error(str(source, ": has ", all.size(), " tokens, one calibration sample needs ", length));
  std::mt19937_64 random(seed);
  CalibrationTokens tokens{samples, length, {}, source, {}};
  tokens.ids.reserve(size_t(samples * length));
  const uint64_t starts = uint64_t(all.size()) - uint64_t(length) + 1;
  for (int64_t i = 0; i < samples; ++i) {
    const auto first = all.begin() + std::ptrdiff_t(random() % starts);
    tokens.ids.insert(tokens.ids.end(), first, first + std::ptrdiff_t(length));
  }
  return tokens;
}

CalibrationTokens calibration_from_model(Backend& backend, nn::Model& model, int64_t usable_vocab,
                                         int64_t samples, int64_t length, uint64_t seed,
                                         const std::function<void(int64_t done, int64_t all)>& progress) {
  const int32_t start = model.facts().bos_id >= 0 ? model.facts().bos_id : model.facts().eos_id;
  if (start < 0)
    throw Error("self-calibration: the model names no beginning-of-text token; give --calibration FILE");
  constexpr int64_t kAtOnce = 64;
  Engine engine(backend, model,
                {.limits = {.max_sequences = kAtOnce, .max_batch_tokens = 512},
                 .cache_positions = std::min(samples, kAtOnce) * KvCache::pages_for(length) * kPagePositions,
                 .usable_vocab = usable_vocab});
  std::vector<std::shared_ptr<Sequence>> sequences;
  int64_t done = 0;
  for (int64_t i = 0; i < samples; ++i) {
    GenerationParams params;
    params.max_tokens = length - 1;
    params.ignore_eos = true;
    // Any fixed spreading of (seed, i) will do; the constant is the golden ratio in 64 bits.
    params.sampling.seed = seed * 0x9E3779B97F4A7C15u + uint64_t(i);
    sequences.push_back(std::make_shared<Sequence>(std::vector<int32_t>{start}, params,
                                                   [&](const Sequence&, const SampledToken&) {
                                                     ++done;
                                                     return true;
                                                   }));
    engine.add(sequences.back());
  }
  while (engine.step()) progress(done, samples * (length - 1));
  CalibrationTokens tokens{samples, length, {}, "self", {}};
  for (const auto& sequence : sequences)
    tokens.ids.insert(tokens.ids.end(), sequence->tokens.begin(), sequence->tokens.end());
  CHECK(int64_t(tokens.ids.size()) == samples * length);
  return tokens;
}

}  // namespace ballast
