#include "engine/server/completion_job.h"

#include <algorithm>
#include <random>

#include "engine/server/api_error.h"

namespace ballast::server {
namespace {

double seconds(Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

// Siblings of one prompt differ, and the first is what a request for one alone gives (splitmix64's step).
uint64_t sibling_seed(uint64_t seed, int64_t sibling) {
  return seed + uint64_t(sibling) * 0x9E3779B97F4A7C15u;
}

uint64_t random_seed() {
  thread_local std::mt19937_64 random{std::random_device{}()};
  return random();
}

}  // namespace

CompletionJob::CompletionJob(CompletionRequest request, const JobContext& context, const HttpRequest& http,
                             uint64_t salt, uint64_t owner)
    : request_(std::move(request)),
      context_(context),
      id_(http.id),
      received_(http.received),
      format_(request_, *context.limits.tokenizer, context.limits.model, id_, context.fingerprint),
      unfinished_(request_.sequences()) {
  if (!request_.seed) request_.seed = random_seed();
  for (const Prompt& prompt : request_.prompts) {
    usage_.prompt_tokens += int64_t(prompt.ids.size());
    std::shared_ptr<const Sequence> leader;
    for (int64_t sibling = 0; sibling < request_.best_of; ++sibling) {
      choices.push_back(make_choice(prompt, sibling, salt, owner));
      Sequence& sequence = *choices.back()->sequence;
      sequence.leader = leader;
      if (!leader) leader = choices.back()->sequence;
      progress_.emplace_back().piece = beginning(prompt);
    }
  }
}

GenerationParams CompletionJob::params_for(const Prompt& prompt, int64_t sibling) const {
  GenerationParams params = request_.params;
  params.max_tokens = tokens_to_generate(request_, prompt, context_.limits);
  params.sampling.seed = sibling_seed(*request_.seed, sibling);
  params.sampling.logprobs =
      request_.best_of > request_.n ? std::max(0, request_.logprobs) : request_.logprobs;
  if (request_.echo) params.prompt_logprobs = request_.logprobs;
  return params;
}

std::unique_ptr<Choice> CompletionJob::make_choice(const Prompt& prompt, int64_t sibling, uint64_t salt,
                                                   uint64_t owner) {
  // Behind an echoed prompt the text goes on where the prompt stopped, within a character if need be.
  StreamDecoder decoder(*context_.limits.tokenizer);
  if (request_.echo)
    for (const int32_t id : prompt.ids) decoder.push(id);
  auto choice =
      std::make_unique<Choice>(TextStream(std::move(decoder), request_.stop, count_characters(prompt.text)));
  GenerationParams params = params_for(prompt, sibling);
  params.prefix_salt = salt;
  choice->sequence = std::make_shared<Sequence>(prompt.ids, std::move(params), nullptr);
  choice->sequence->owner = owner;
  return choice;
}

Piece CompletionJob::beginning(const Prompt& prompt) const {
  Piece piece;
  if (!request_.echo) return piece;
  piece.text = prompt.text;
  if (request_.logprobs >= 0) piece.tokens.push_back({.id = prompt.ids[0]});
  return piece;
}

void CompletionJob::answer_to(std::shared_ptr<Reply> reply) {
  reply_ = std::move(reply);
}

void CompletionJob::on_event(Event& event) {
  Progress& progress = progress_[size_t(event.choice)];
  progress.changed = true;
  switch (event.kind) {
    case Event::Kind::started:
      usage_.cached_tokens += event.choice % request_.best_of == 0 ? event.shared_tokens : 0;
      if (!std::exchange(started_, true)) context_.metrics.queue.add(seconds(event.at - received_));
      return;
    case Event::Kind::prompt_token: {
      const Prompt& prompt = request_.prompts[size_t(event.choice / request_.best_of)];
      const auto token = size_t(++progress.prompt_scored);
      progress.piece.tokens.push_back({.id = event.token.id,
                                       .scored = true,
                                       .logprob = event.token.logprob,
                                       .text_offset = prompt.offsets[token],
                                       .top = std::move(event.token.top)});
      return;
    }
    case Event::Kind::token:
      return take_token(progress, event);
    case Event::Kind::finished:
      return take_finish(progress, event);
  }
}

void CompletionJob::take_token(Progress& progress, Event& event) {
  if (first_token_ == Clock::time_point{}) {
    first_token_ = event.at;
    context_.metrics.first_token.add(seconds(event.at - received_));
  }
  if (progress.generated > 0) context_.metrics.inter_token.add(seconds(event.at - progress.last));
  progress.last = last_token_ = event.at;
  ++progress.generated;
  ++usage_.completion_tokens;
  progress.logprob_sum += double(event.token.logprob);
  progress.piece.text += event.text;
  if (request_.logprobs >= 0 || request_.return_token_ids)
    progress.piece.tokens.push_back({.id = event.token.id,
                                     .scored = true,
                                     .logprob = event.token.logprob,
                                     .text_offset = event.text_offset,
                                     .top = std::move(event.token.top)});
}

void CompletionJob::take_finish(Progress& progress, Event& event) {
  progress.piece.text += event.text;
  progress.piece.finish =
      timed_out_ && event.finish == FinishReason::cancelled ? FinishReason::length : event.finish;
  progress.piece.by_stop_string = event.by_stop_string;
  progress.error = std::move(event.error);
  progress.finished = true;
  ++context_.metrics.finished[size_t(event.finish)];
  --unfinished_;
}

void CompletionJob::after_events() {
  if (done_) return;
  if (request_.stream) stream();
  if (unfinished_ > 0) return;
  done_ = true;
  context_.metrics.whole.add(seconds(Clock::now() - received_));
  finish();
  context_.on_done(*this);
}

void CompletionJob::stream() {
  if (!streaming_begun_) {
    // A failure that is known before the first byte can still have its status.
    if (unfinished_ == 0 && progress_[0].piece.finish == FinishReason::failed) return;
    streaming_begun_ = true;
    reply_->begin({.content_type = "text/event-stream",
                   .headers = {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}}});
  }
  std::string bytes;
  for (size_t i = 0; i < progress_.size(); ++i) {
    Progress& progress = progress_[i];
    if (!std::exchange(progress.changed, false) || progress.piece.finish == FinishReason::failed) continue;
    if (progress.piece.text.empty() && progress.piece.tokens.empty() && !progress.finished) continue;
    bytes += format_.piece(int64_t(i), progress.piece, usage_, timing());
    progress.piece = {.first = false};
  }
  reply_->write(bytes);
}

Timing CompletionJob::timing() const {
  if (first_token_ == Clock::time_point{}) return {};
  return {seconds(first_token_ - received_), seconds(last_token_ - received_)};
}

void CompletionJob::finish() {
  for (const Progress& progress : progress_) {
    if (progress.error.empty() && progress.piece.finish != FinishReason::failed) continue;
    const ApiError error(500, "the server failed while computing this request");
    if (!streaming_begun_) return reply_->send(error.response());
    reply_->write(sse_event(error.json()));
    return reply_->end();
  }
  if (request_.stream) {
    reply_->write(format_.ending(usage_));
    return reply_->end();
  }
  // Answers with log-probabilities run to megabytes.
  const auto self = std::static_pointer_cast<CompletionJob>(shared_from_this());
  context_.workers.run([self] {
    auto response = std::make_shared<HttpResponse>(
        json_response(self->format_.whole(self->best(), self->usage_, self->timing())));
    self->context_.post([self, response] { self->reply_->send(std::move(*response)); });
  });
}

// The n of best_of with the highest mean log-probability, best first; all in their order when all are wanted.
std::vector<Piece> CompletionJob::best() {
  std::vector<Piece> pieces;
  const auto mean = [](const Progress* progress) {
    return progress->logprob_sum / double(std::max<int64_t>(1, progress->generated));
  };
  for (size_t first = 0; first < progress_.size(); first += size_t(request_.best_of)) {
    std::vector<Progress*> order;
    for (size_t i = first; i < first + size_t(request_.best_of); ++i) order.push_back(&progress_[i]);
    if (request_.best_of > request_.n)
      std::stable_sort(order.begin(), order.end(),
                       [&](const Progress* a, const Progress* b) { return mean(a) > mean(b); });
    for (int64_t i = 0; i < request_.n; ++i) pieces.push_back(std::move(order[size_t(i)]->piece));
  }
  return pieces;
}

}  // namespace ballast::server
