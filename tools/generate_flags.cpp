#include "tools/generate_flags.h"

#include <charconv>
#include <cmath>

#include "tools/flags.h"

namespace ballast {
namespace {

// ID=VALUE
std::pair<int32_t, double> parse_bias(const std::string& text) {
  const size_t equals = text.find('=');
  const char* const end = text.data() + text.size();
  int32_t id = -1;
  double bias = NAN;
  if (equals != text.npos) {
    const char* const middle = text.data() + equals;
    if (std::from_chars(text.data(), middle, id).ptr != middle) id = -1;
    if (std::from_chars(middle + 1, end, bias).ptr != end) bias = NAN;
  }
  if (id < 0 || !std::isfinite(bias))
    throw CLI::ValidationError("--logit-bias", "is \"" + text + "\", expected ID=VALUE");
  return {id, bias};
}

void add_prompt_flags(CLI::App& app, GenerateOptions& options) {
  app.add_option("-m,--model", options.model, "Folder of the model")->required()->type_name("DIR");
  app.add_option("-p,--prompt", options.prompt, "Text to continue")->type_name("TEXT");
  app.add_option("-f,--file", options.prompt_file,
                 "File with the text to continue, - for standard input (which is also read when it is a "
                 "pipe); one newline "
                 "at the end is dropped")
      ->type_name("FILE");
  app.add_option("--batch", options.batch_file,
                 "File with one JSON object a line, {\"prompt\": …} and any of max_tokens, temperature, "
                 "top_k, top_p, min_p, "
                 "repetition_penalty, presence_penalty, frequency_penalty, seed, stop, ignore_eos; results "
                 "come out one a "
                 "line, in the same order")
      ->type_name("FILE");
  app.add_option("--parallel", options.parallel, "Prompts of --batch that run together")
      ->type_name("N")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_flag("-i,--interactive", options.interactive,
               "Read lines and continue each; /help lists what else it does");
}

void add_length_flags(CLI::App& app, GenerateOptions& options) {
  app.add_option("-n,--max-tokens", options.max_tokens,
                 "Tokens to generate at most; -1: what the context holds")
      ->type_name("N")
      ->check(CLI::Range(int64_t(-1), int64_t(1) << 40))
      ->capture_default_str();
  app.add_option("--ctx", options.context, "Positions for prompt and answer; 0: the model's")
      ->type_name("N")
      ->check(CLI::Range(int64_t(0), int64_t(1) << 40))
      ->capture_default_str();
  app.add_option("--stop", options.stop, "End before this text, which is not shown; may be repeated")
      ->type_name("TEXT")
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  app.add_flag("--ignore-eos", options.params.ignore_eos, "Never choose the end-of-text token");
}

void add_sampling_flags(CLI::App& app, GenerateOptions& options) {
  SamplingParams& sampling = options.params.sampling;
  sampling.temperature = 0.8;
  sampling.top_p = 0.95;
  const auto number = [&](const char* name, auto& value, const char* description) {
    app.add_option(name, value, description)->type_name("X")->capture_default_str();
  };
  number("--temperature", sampling.temperature, "0: always the likeliest token");
  number("--top-k", sampling.top_k, "Choose among this many likeliest tokens; 0: all");
  number("--top-p", sampling.top_p, "Choose among the likeliest tokens that make up this share");
  number("--min-p", sampling.min_p, "Drop tokens less likely than this times the likeliest");
  number("--repetition-penalty", sampling.repetition_penalty,
         "Above 1: makes tokens that were seen less likely");
  number("--presence-penalty", sampling.presence_penalty, "Taken once off the logit of each generated token");
  number("--frequency-penalty", sampling.frequency_penalty, "Taken off for every time a token was generated");
  app.add_option_function<std::vector<std::string>>(
         "--logit-bias",
         [&sampling](const std::vector<std::string>& texts) {
           for (const std::string& text : texts) sampling.logit_bias.push_back(parse_bias(text));
         },
         "Added to the logit of token ID; may be repeated")
      ->type_name("ID=VALUE")
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  app.add_option("--seed", options.seed, "Of the random choices; without it a random one is used and shown")
      ->type_name("N")
      ->check(CLI::NonNegativeNumber);
}

}  // namespace

void add_generate_flags(CLI::App& app, GenerateOptions& options) {
  add_prompt_flags(app, options);
  add_length_flags(app, options);
  add_sampling_flags(app, options);
  app.add_option("--logprobs", options.params.sampling.logprobs,
                 "List each token's log-probability and those of the N likeliest tokens")
      ->type_name("N")
      ->check(CLI::Range(0, kMaxLogprobs));
  add_activations_flag(app, options.activations);
  add_cache_type_flag(app, options.cache_type);
  app.add_flag("--echo", options.echo, "Show the prompt before its continuation");
  app.add_flag("--json", options.json, "Print one JSON object instead of text");
}

}  // namespace ballast
