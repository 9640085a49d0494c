#include "engine/runtime/engine.h"

#include <algorithm>
#include <chrono>
#include <numeric>

namespace ballast {
namespace {

// Rows whose logits are in memory together.
constexpr int64_t kLogitRows = 64;
// A pass with fewer rows costs little more than one with a single row.
constexpr int64_t kManyRows = 16;

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
             options.cache_positions > 0 ? options.cache_positions : context_, options.cache_type),
      scheduler_(cache_, context_, options.limits),
      runner_(backend, model, cache_),
      pass_seconds_(options.pass_seconds) {}

void Engine::add(std::shared_ptr<Sequence> sequence) {
  for (int32_t id : sequence->tokens)
    if (id < 0 || id >= model_.facts().vocab)
      throw Error(str("token id ", id, " is outside the model's vocabulary of ", model_.facts().vocab));
  scheduler_.add(std::move(sequence));
}

bool Engine::step() {
  scheduler_.next(batch_, prompt_rows());
  if (batch_.empty()) return false;
  const auto start = std::chrono::steady_clock::now();
  try {
    run_batch();
  } catch (...) {
    scheduler_.fail();
    throw;
  }
  if (batch_.tokens() >= kManyRows) {
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    const double now = seconds.count() / double(batch_.tokens());
    row_seconds_ = row_seconds_ > 0 ? 0.75 * row_seconds_ + 0.25 * now : now;
  }
  scheduler_.commit(tokens_, model_.facts().eos_id);
  return true;
}

void Engine::run_batch() {
  const TensorView hidden = runner_.hidden(batch_);
  const int64_t count = int64_t(scheduler_.wanted().size());
  tokens_.assign(size_t(count), {});
  for (int64_t first = 0; first < count; first += kLogitRows) {
    const int64_t rows = std::min(kLogitRows, count - first);
    const TensorView logits = runner_.logits(batch_, hidden, first, rows);
    std::vector<int32_t> left;
    if (backend_.device() == Device::cpu) {
      left.resize(size_t(rows));
      std::iota(left.begin(), left.end(), 0);
    } else {
      left = choose_there(first, logits);
    }
    answer_here(first, logits, left);
  }
}

// The rows that are left to the host.
std::vector<int32_t> Engine::choose_there(int64_t first, const TensorView& logits) {
  const int64_t rows = logits.shape[0];
  std::vector<int32_t> left;
  std::vector<TokenChoice> choices(static_cast<size_t>(rows));
  std::vector<ChosenToken> chosen(static_cast<size_t>(rows));
  std::vector<bool> asked(static_cast<size_t>(rows));
  bool wide = false;
  for (int64_t row = 0; row < rows; ++row) {
    const LogitRequest& request = scheduler_.wanted()[size_t(first + row)];
    if (!request.sampled()) continue;
    const auto choice = request.sequence->sampler.choice(banned(*request.sequence));
    if (!choice) continue;
    asked[size_t(row)] = true;
    choices[size_t(row)] = *choice;
    wide |= choice->candidates > 0;
  }
  if (wide) candidates_.resize(size_t(rows * ChooseTokens::kMostCandidates));
  if (std::find(asked.begin(), asked.end(), true) != asked.end())
    backend_.run(ChooseTokens{.logits = logits,
                              .usable = usable_vocab_,
                              .choices = choices,
                              .chosen = chosen,
                              .candidates = candidates_});
  for (int64_t row = 0; row < rows; ++row) {
    std::optional<SampledToken> token;
    const int64_t found = std::min<int64_t>(choices[size_t(row)].candidates, usable_vocab_);
    if (asked[size_t(row)])
      token = scheduler_.wanted()[size_t(first + row)].sequence->sampler.choose_among(
          chosen[size_t(row)],
          found > 0 ? std::span<const Candidate>(candidates_)
                          .subspan(size_t(row * ChooseTokens::kMostCandidates), size_t(found))
                    : std::span<const Candidate>(),
          usable_vocab_);
    if (token) {
      tokens_[size_t(first + row)] = *token;
    } else {
      left.push_back(int32_t(row));
    }
  }
  return left;
}

void Engine::answer_here(int64_t first, const TensorView& logits, const std::vector<int32_t>& rows) {
  const int64_t vocab = logits.shape[1];
  logits_.resize(rows.size() * size_t(vocab));
  if (int64_t(rows.size()) == logits.shape[0]) {
    backend_.copy_to_host(logits_.data(), logits.data, logits.bytes());
  } else {
    for (size_t i = 0; i < rows.size(); ++i)
      backend_.copy_to_host(logits_.data() + i * size_t(vocab), logits.row(rows[i]),
                            vocab * int64_t(sizeof(float)));
  }
  backend_.parallel_for(int64_t(rows.size()), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      answer(first + rows[size_t(i)], std::span(logits_).subspan(size_t(i * vocab), size_t(vocab)));
  });
}

int32_t Engine::banned(const Sequence& sequence) const {
  const bool no_end = sequence.params.ignore_eos || sequence.generated() < sequence.params.min_tokens;
  return no_end ? model_.facts().eos_id : -1;
}

void Engine::answer(int64_t index, std::span<const float> logits) {
  const LogitRequest& request = scheduler_.wanted()[size_t(index)];
  Sequence& sequence = *request.sequence;
  if (!request.sampled()) {
    tokens_[size_t(index)] = score(logits.first(size_t(usable_vocab_)),
                                   sequence.tokens[size_t(request.token)], sequence.params.prompt_logprobs);
    return;
  }
  tokens_[size_t(index)] = sequence.sampler.sample(logits, usable_vocab_, banned(sequence), sequence.tokens,
                                                   sequence.prompt_tokens);
}

int64_t Engine::prompt_rows() const {
  const int64_t most = scheduler_.limits().max_batch_tokens;
  if (pass_seconds_ <= 0 || row_seconds_ <= 0) return most;
  const double rows = pass_seconds_ / row_seconds_;
  return std::clamp(int64_t(std::min(rows, double(most))), std::min(kManyRows, most), most);
}

}  // namespace ballast
