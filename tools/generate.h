// What the three ways of generating share: one prompt, a batch of prompts, a dialogue.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tools/global_options.h"
#include "tools/loaded_model.h"
#include "tools/text_generation.h"

namespace ballast {

struct GenerateOptions {
  std::string model;
  std::optional<std::string> prompt;
  std::string prompt_file, batch_file;
  std::string activations = "f32";
  CacheType cache_type = CacheType::f32;
  bool interactive = false, echo = false, json = false;
  int64_t max_tokens = 128;  ///< -1: as many as the context holds
  int64_t context = 0;       ///< 0: the model's
  int64_t parallel = 8;      ///< sequences of a batch that run together
  std::optional<uint64_t> seed;
  std::vector<std::string> stop;
  GenerationParams params;
};

/// A model ready to generate, for the length of one command.
class Generator {
 public:
  Generator(const GenerateOptions& options, const GlobalOptions& global);

  const Tokenizer& tokenizer() const { return *loaded_.tokenizer; }
  nn::Model& model() { return *loaded_.model; }
  Backend& backend() { return *backend_; }
  double load_seconds() const { return loaded_.seconds; }
  /// Positions of the longest sequence.
  int64_t context() const { return context_; }

  /// `base` with the number of tokens clipped to what the context leaves. Error when the prompt is too long.
  GenerationParams fitted(GenerationParams base, int64_t max_tokens, int64_t prompt_tokens) const;
  /// An engine with a cache for `positions` positions.
  Engine engine(int64_t positions, const SchedulerLimits& limits = {});
  /// Runs one sequence; the first interrupt ends it with what it has.
  void run(TextGeneration& generation);

 private:
  std::unique_ptr<Backend> backend_;
  LoadedModel loaded_;
  CacheType cache_type_;
  int64_t context_;
};

/// A seed from the system's random numbers, short enough to be typed.
uint64_t random_seed();

void generate_batch(const GenerateOptions& options, const GlobalOptions& global);
void generate_interactively(const GenerateOptions& options, const GlobalOptions& global);

}  // namespace ballast
