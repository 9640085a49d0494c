#include "engine/runtime/engine.h"

#include <algorithm>

namespace ballast {
namespace {

// `wanted`, at most `available`; 0 means all of it.
int64_t limited(int64_t wanted, int64_t available) {
  return wanted > 0 ? std::min(wanted, available) : available;
}

}  // namespace

Engine::Engine(Backend& backend, nn::Model& model, const EngineOptions& options)
    : backend_(backend),
      model_(model),
      usable_vocab_(limited(options.usable_vocab, model.facts().vocab)),
      context_(limited(options.context, model.facts().max_positions)),
      cache_(backend, model.facts(), model.facts().layers,
             options.cache_positions > 0 ? options.cache_positions : context_),
      scheduler_(cache_, context_, options.limits),
      runner_(backend, model, cache_) {}

void Engine::add(std::shared_ptr<Sequence> sequence) {
  for (int32_t id : sequence->tokens)
    if (id < 0 || id >= model_.facts().vocab)
      throw Error(str("token id ", id, " is outside the model's vocabulary of ", model_.facts().vocab));
  scheduler_.add(std::move(sequence));
}

bool Engine::step() {
  scheduler_.next(batch_);
  if (batch_.empty()) return false;
  const TensorView logits = runner_.run(batch_);
  const auto& sampled = scheduler_.sampled();
  tokens_.assign(sampled.size(), {});
  if (!sampled.empty()) {
    const int64_t vocab = model_.facts().vocab;
    logits_.resize(sampled.size() * size_t(vocab));
    backend_.copy_to_host(logits_.data(), logits.data, logits.bytes());
    backend_.parallel_for(int64_t(sampled.size()), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        Sequence& sequence = *sampled[size_t(i)];
        const bool no_end = sequence.params.ignore_eos || sequence.generated() < sequence.params.min_tokens;
        tokens_[size_t(i)] = sequence.sampler.sample(
            std::span(logits_).subspan(size_t(i * vocab), size_t(vocab)), usable_vocab_,
            no_end ? model_.facts().eos_id : -1, sequence.tokens, sequence.prompt_tokens);
      }
    });
  }
  scheduler_.commit(tokens_, model_.facts().eos_id);
  return true;
}

}  // namespace ballast
