#include "engine/runtime/sampler.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "kernels/check.h"

namespace ballast {
namespace {

void require(bool in_range, const char* field, double value, const char* expected) {
  if (!in_range) throw Error(str(field, " is ", value, ", expected ", expected));
}

bool likelier(const std::pair<float, int32_t>& a, const std::pair<float, int32_t>& b) {
  return a.first > b.first || (a.first == b.first && a.second < b.second);
}

bool worse(const std::pair<float, int32_t>& a, const std::pair<float, int32_t>& b) {
  return likelier(b, a);
}

double log_sum_exp(std::span<const float> logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float value : logits) sum += std::exp(double(value) - top);
  return top + std::log(sum);
}

}  // namespace

void SamplingParams::check() const {
  // Comparisons are written so that NaN fails them.
  require(temperature >= 0 && temperature <= 100, "temperature", temperature, "0 to 100");
  require(top_k >= 0, "top_k", double(top_k), "0 or more");
  require(top_p > 0 && top_p <= 1, "top_p", top_p, "more than 0, up to 1");
  require(min_p >= 0 && min_p <= 1, "min_p", min_p, "0 to 1");
  require(repetition_penalty > 0 && repetition_penalty <= 100, "repetition_penalty", repetition_penalty,
          "more than 0, up to 100");
  require(presence_penalty >= -2 && presence_penalty <= 2, "presence_penalty", presence_penalty, "-2 to 2");
  require(frequency_penalty >= -2 && frequency_penalty <= 2, "frequency_penalty", frequency_penalty,
          "-2 to 2");
  require(logprobs >= -1 && logprobs <= kMaxLogprobs, "logprobs", logprobs, "0 to 1000");
  for (const auto& [id, bias] : logit_bias) {
    require(id >= 0, "logit_bias token", id, "0 or more");
    require(bias >= -100 && bias <= 100, "logit_bias", bias, "-100 to 100");
  }
}

SampledToken score(std::span<const float> logits, int32_t id, int count) {
  const double total = log_sum_exp(logits);
  SampledToken token{.id = id, .logprob = float(logits[size_t(id)] - total)};
  std::vector<std::pair<float, int32_t>> order;
  for (int32_t other = 0; other < int32_t(logits.size()); ++other)
    order.emplace_back(logits[size_t(other)], other);
  const auto end = order.begin() + std::min(std::ptrdiff_t(order.size()), std::ptrdiff_t(count));
  std::partial_sort(order.begin(), end, order.end(), likelier);
  for (auto best = order.begin(); best != end; ++best)
    token.top.emplace_back(best->second, float(best->first - total));
  return token;
}

SampledToken Sampler::sample(std::span<const float> logits, int64_t usable, int32_t banned,
                             std::span<const int32_t> tokens, int64_t prompt) {
  CHECK(usable > 0 && usable <= int64_t(logits.size()));
  logits = logits.first(size_t(usable));
  scored_.clear();
  for (int32_t id = 0; id < int32_t(usable); ++id)
    scored_.emplace_back(std::isnan(logits[size_t(id)]) ? -INFINITY : logits[size_t(id)], id);

  if (params_.repetition_penalty != 1 || params_.presence_penalty != 0 || params_.frequency_penalty != 0) {
    std::unordered_map<int32_t, int64_t>
        generated;  // every seen token, with its count among the generated ones
    for (size_t i = 0; i < tokens.size(); ++i) generated[tokens[i]] += int64_t(i) >= prompt ? 1 : 0;
    for (const auto& [id, count] : generated) {
      if (id < 0 || id >= usable) continue;
      float& logit = scored_[size_t(id)].first;
      logit = float(logit > 0 ? logit / params_.repetition_penalty : logit * params_.repetition_penalty);
      if (count > 0) logit -= float(params_.presence_penalty + params_.frequency_penalty * double(count));
    }
  }
  for (const auto& [id, bias] : params_.logit_bias)
    if (id < usable) scored_[size_t(id)].first += float(bias);
  if (banned >= 0 && banned < usable) scored_[size_t(banned)].first = -INFINITY;

  const int32_t id = choose();
  return params_.logprobs >= 0 ? score(logits, id, params_.logprobs) : SampledToken{.id = id};
}

double Sampler::weight(float logit, float top) const {
  const double value = std::exp((double(logit) - double(top)) / params_.temperature);
  return std::isnan(value) ? 0 : value;
}

// Leaves the likeliest tokens that reach top_p of `total` and are not below min_p, best first; `total` becomes their weight.
// Whether there was an end to them. Popping a heap costs less than sorting: few tokens stay.
bool Sampler::keep_likeliest(double& total) {
  const float top = std::max_element(scored_.begin(), scored_.end(), worse)->first;
  std::make_heap(scored_.begin(), scored_.end(), worse);
  auto rest = scored_.end();
  double sum = 0;
  bool ended = false;
  weights_.clear();
  while (!ended && rest != scored_.begin()) {
    const double next = weight(scored_.front().first, top);
    ended = !weights_.empty() && next < params_.min_p;
    if (ended) break;
    std::pop_heap(scored_.begin(), rest--, worse);
    sum += weights_.emplace_back(next);
    ended = params_.top_p < 1 && sum >= params_.top_p * total;
  }
  scored_.erase(scored_.begin(), rest);
  std::reverse(scored_.begin(), scored_.end());
  total = sum;
  return ended;
}

int32_t Sampler::choose() {
  const auto best = std::max_element(scored_.begin(), scored_.end(), worse);
  if (params_.temperature == 0) return best->second;
  const float top = best->first;
  if (params_.top_k > 0 && params_.top_k < int64_t(scored_.size())) {
    std::nth_element(scored_.begin(), scored_.begin() + params_.top_k, scored_.end(), likelier);
    scored_.resize(size_t(params_.top_k));
    std::sort(scored_.begin(), scored_.end(),
              [](const auto& a, const auto& b) { return a.second < b.second; });
  }
  weights_.clear();
  double total = 0;
  for (const auto& candidate : scored_) total += weights_.emplace_back(weight(candidate.first, top));
  if (keeps_likeliest()) keep_likeliest(total);
  return draw(total);
}

// 53 random bits, as a fraction of 1.
double Sampler::fraction() {
  return double(random_() >> 11) * 0x1p-53;
}

int32_t Sampler::draw(double total) {
  double target = fraction() * total;
  int32_t last = scored_.front().second;  // what rounding may leave
  for (size_t i = 0; i < scored_.size(); ++i) {
    if (weights_[i] == 0) continue;
    last = scored_[i].second;
    if (target < weights_[i]) return last;
    target -= weights_[i];
  }
  return last;
}

std::optional<TokenChoice> Sampler::choice(int32_t banned) {
  if (params_.logprobs >= 0 || params_.repetition_penalty != 1 || params_.presence_penalty != 0 ||
      params_.frequency_penalty != 0 || !params_.logit_bias.empty() ||
      params_.top_k > ChooseTokens::kMostCandidates)
    return {};
  TokenChoice choice{.temperature = params_.temperature, .banned = banned};
  if (params_.temperature == 0) return choice;
  if (params_.top_k > 0 || keeps_likeliest())
    choice.candidates = int32_t(params_.top_k > 0 ? params_.top_k : ChooseTokens::kMostCandidates);
  else
    choice.fraction = fraction();
  return choice;
}

std::optional<SampledToken> Sampler::choose_among(const ChosenToken& chosen,
                                                  std::span<const Candidate> candidates, int64_t usable) {
  if (candidates.empty()) return SampledToken{.id = chosen.token};
  scored_.clear();
  weights_.clear();
  double total = 0;
  for (const Candidate& candidate : candidates) {
    scored_.emplace_back(candidate.logit, candidate.id);
    total += weights_.emplace_back(weight(candidate.logit, chosen.top));
  }
  const bool all = params_.top_k > 0 || int64_t(candidates.size()) == usable;
  if (!all) total = chosen.total;
  if (keeps_likeliest() && !keep_likeliest(total) && !all) return {};
  return SampledToken{.id = draw(total)};
}

}  // namespace ballast
