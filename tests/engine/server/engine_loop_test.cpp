// The engine's thread when steps fail, when jobs are cancelled, and what its metrics say. The model is a fake one
// without blocks that likes the token after the last.
#include "engine/server/engine_loop.h"

#include <gtest/gtest.h>

#include <thread>

#include "engine/server/metrics.h"

namespace ballast::server {
namespace {

constexpr int64_t kVocab = 8;

class FakeModel : public nn::Model {
 public:
  FakeModel() {
    facts_ = {.architecture = "fake",
              .hidden = 4,
              .layers = 0,
              .heads = 1,
              .ffn = 4,
              .vocab = kVocab,
              .max_positions = 64};
  }
  void embed(const nn::ForwardContext& context, const OutputView& hidden) override {
    if (failures > 0) {
      --failures;
      throw RuntimeFailure("no memory on the device");
    }
    const int32_t* const ids = context.batch.ids.as<int32_t>();
    for (int64_t row = 0; row < hidden.shape[0]; ++row) hidden.as<float>()[row * 4] = float(ids[row]);
  }
  void head(const nn::ForwardContext&, const TensorView& hidden, const OutputView& logits) override {
    for (int64_t row = 0; row < hidden.shape[0]; ++row)
      for (int64_t id = 0; id < kVocab; ++id)
        logits.as<float>()[row * kVocab + id] =
            id == (int64_t(hidden.as<float>()[row * 4]) + 1) % kVocab ? 5 : 0;
  }
  TensorView head_input(const nn::ForwardContext&, const TensorView&) override {
    throw ContractError("unused");
  }
  nn::Linear& lm_head() override { throw ContractError("unused"); }
  bool tied_head() const override { return false; }

  int failures = 0;  ///< steps that are to throw
};

class FakeTokenizer : public Tokenizer {
 public:
  std::vector<int32_t> encode(std::string_view, bool) const override { return {0}; }
  std::string_view token_bytes(int32_t id) const override {
    return std::string_view("abcdefgh").substr(size_t(id), 1);
  }
  bool is_special(int32_t) const override { return false; }
  int64_t vocabulary_size() const override { return kVocab; }
  std::optional<int32_t> bos_id() const override { return {}; }
  std::optional<int32_t> eos_id() const override { return {}; }
};

struct FakeJob : Job {
  void on_event(Event& event) override {
    text += event.text;
    if (event.kind == Event::Kind::finished) finish = event.finish, error = event.error;
  }
  void after_events() override {}
  std::string text, error;
  FinishReason finish = FinishReason::none;
};

class EngineLoopTest : public testing::Test {
 protected:
  std::shared_ptr<FakeJob> job(int64_t tokens, std::vector<std::string> stop = {}) {
    auto made = std::make_shared<FakeJob>();
    auto choice = std::make_unique<Choice>(TextStream(StreamDecoder(tokenizer), std::move(stop)));
    GenerationParams params;
    params.max_tokens = tokens;
    params.sampling.temperature = 0;
    choice->sequence = std::make_shared<Sequence>(std::vector<int32_t>{0}, params, nullptr);
    made->choices.push_back(std::move(choice));
    return made;
  }
  /// Runs until `count` jobs have ended; false when the loop threw.
  bool run(int count) {
    Engine engine(*backend, model, {.limits = {.max_sequences = 2}});
    int ended = 0;
    EngineLoop loop(engine, [&](std::vector<Event> events) {
      for (Event& event : events) {
        event.job->on_event(event);
        if (event.kind == Event::Kind::finished && ++ended == count) loop_->stop();
      }
    });
    loop_ = &loop;
    for (const auto& one : jobs) loop.submit(one);
    if (cancel) loop.cancel(cancel);
    try {
      loop.run();
    } catch (const RuntimeFailure&) {
      return false;
    }
    status = loop.status();
    return true;
  }

  std::unique_ptr<Backend> backend = find_backend({.device = "cpu", .threads = 1});
  FakeModel model;
  FakeTokenizer tokenizer;
  std::vector<std::shared_ptr<FakeJob>> jobs;
  std::shared_ptr<FakeJob> cancel;
  EngineLoop* loop_ = nullptr;
  EngineStatus status;
};

TEST_F(EngineLoopTest, JobsGetTheirText) {
  jobs = {job(5), job(3), job(20, {"fg"})};
  EXPECT_TRUE(run(3));
  EXPECT_EQ(jobs[0]->text, "bcdef");
  EXPECT_EQ(jobs[1]->text, "bcd");
  EXPECT_EQ(jobs[2]->text, "bcde");
  EXPECT_EQ(jobs[2]->finish, FinishReason::stop);
  EXPECT_EQ(jobs[2]->choices[0]->sequence->generated(), 6) << "not one token more than the stop needs";
  EXPECT_EQ(status.running + status.waiting + status.used_pages, 0);
}

TEST_F(EngineLoopTest, OneFailedStepFailsItsBatchAlone) {
  jobs = {job(4), job(4), job(4)};  // two run, one waits
  model.failures = 1;
  EXPECT_TRUE(run(3));
  EXPECT_EQ(jobs[0]->finish, FinishReason::failed);
  EXPECT_EQ(jobs[0]->error, "no memory on the device");
  EXPECT_EQ(jobs[1]->finish, FinishReason::failed);
  EXPECT_EQ(jobs[2]->finish, FinishReason::length);
  EXPECT_EQ(jobs[2]->text, "bcde");
}

TEST_F(EngineLoopTest, TwoInARowEndTheLoopAndEveryJob) {
  jobs = {job(4), job(4), job(4), job(4), job(4)};
  model.failures = 2;
  EXPECT_FALSE(run(5));
  for (const auto& one : jobs) EXPECT_EQ(one->finish, FinishReason::failed);
}

TEST_F(EngineLoopTest, ACancelledJobEndsBeforeItsNextToken) {
  jobs = {job(30), job(4)};
  cancel = jobs[0];
  EXPECT_TRUE(run(2));
  EXPECT_EQ(jobs[0]->finish, FinishReason::cancelled);
  EXPECT_EQ(jobs[0]->text, "");
  EXPECT_EQ(jobs[1]->text, "bcde");
}

TEST_F(EngineLoopTest, WhatCannotFitFailsAlone) {
  auto large = job(4);
  large->choices[0]->sequence->tokens.assign(100, 1);
  large->choices[0]->sequence->prompt_tokens = 100;
  jobs = {large, job(2)};
  EXPECT_TRUE(run(2));
  EXPECT_EQ(large->finish, FinishReason::failed);
  EXPECT_NE(large->error.find("100 tokens"), std::string::npos);
  EXPECT_EQ(jobs[1]->text, "bc");
}

TEST(Metrics, HistogramsAddUp) {
  Histogram histogram({1, 2});
  for (const double value : {0.5, 1.0, 1.5, 7.0}) histogram.add(value);
  EXPECT_EQ(histogram.text("t", "Help."),
            "# HELP ballast_t Help.\n# TYPE ballast_t histogram\n"
            "ballast_t_bucket{le=\"1\"} 2\nballast_t_bucket{le=\"2\"} 3\nballast_t_bucket{le=\"+Inf\"} 4\n"
            "ballast_t_sum 10\nballast_t_count 4\n");
}

TEST(Metrics, LabelsAreEscaped) {
  Metrics metrics;
  metrics.responses[{"/a\"b\\", 200}] = 1;
  const std::string text = metrics.text({}, 3, {}, "1 \"x\"");
  EXPECT_NE(text.find("route=\"/a\\\"b\\\\\",status=\"200\"} 1"), text.npos);
  EXPECT_NE(text.find("ballast_images_classified_total 3\n"), text.npos);
  EXPECT_NE(text.find("version=\"1 \\\"x\\\"\""), text.npos);
}

}  // namespace
}  // namespace ballast::server
