#include "quantize/fingerprint.h"

#include <algorithm>
#include <charconv>

#include "engine/io/content_hash.h"
#include "engine/io/json.h"
#include "quantize/output.h"

namespace ballast {
namespace {

// The shortest text that reads back as the same bits.
std::string text_of(double value) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof text, value).ptr};
}
std::string text_of(int64_t value) {
  return std::to_string(value);
}
std::string text_of(bool value) {
  return value ? "on" : "off";
}

std::string text_of(const std::vector<LayerOverride>& rules) {
  std::string text;
  for (const auto& [pattern, regex, bits, group_size] : rules)
    text += str(text.empty() ? "" : " ", pattern, "=", bits, ":", group_size);
  return text.empty() ? "none" : text;
}

// Patterns may hold anything; everything else is short and needs no quotation marks.
std::string plain(const std::string& value) {
  const bool simple = std::all_of(value.begin(), value.end(), [](char c) { return c >= ' ' && c <= '~'; });
  return simple && value.size() <= 80 ? value : shown(value);
}

}  // namespace

// Structured bindings name every member, so that a new one does not compile until it is added here.
void add_recipe(RunFingerprint& fingerprint, const Recipe& recipe) {
  const auto& [name, method, grid, overrides, target_bits, layer_bits, head_bits, activation_bits,
               fold_ranges, logarithms, curvature, curvature_groups, damping, act_order, static_groups,
               options, class_weight, one_pass, compensation, asymmetric, gptaq, tune_epochs, tune_codes,
               tune_hidden, correct_drift] = recipe;
  const auto& [sweeps, greedy_order, anneal, refit_scales, unbiased_scales, per_layer, outlier_threshold,
               stat_bits, block_size] = options;
  const auto& [bits, group_size, symmetric, half_zero_bits, clip_search, range_shrink] = grid;
  static_cast<void>(name);  // what it stands for is all here
  fingerprint["--method"] = method;
  fingerprint["--bits"] = text_of(int64_t(bits));
  fingerprint["--group-size"] = text_of(group_size);
  fingerprint["--symmetric"] = text_of(symmetric);
  fingerprint["--zero-points"] = half_zero_bits == 0 ? "whole" : str("half up to ", half_zero_bits, " bits");
  fingerprint["--clip-search"] = text_of(clip_search);
  fingerprint["--range-shrink"] = text_of(range_shrink);
  fingerprint["--override and --skip"] = text_of(overrides);
  static_cast<void>(layer_bits);  // follows from everything else
  fingerprint["--target-bits"] = text_of(target_bits);
  fingerprint["--head-bits"] = text_of(int64_t(head_bits));
  fingerprint["--activation-bits"] = text_of(int64_t(activation_bits));
  fingerprint["--fold-ranges"] = text_of(fold_ranges);
  fingerprint["--logarithms"] = text_of(logarithms);
  fingerprint["--curvature"] = name_of(curvature);
  fingerprint["--curvature-groups"] = text_of(curvature_groups);
  fingerprint["--sweeps"] = text_of(int64_t(sweeps));
  fingerprint["--greedy-order"] = text_of(greedy_order);
  fingerprint["--anneal"] = text_of(anneal);
  fingerprint["--refit-scales"] = text_of(refit_scales);
  fingerprint["--unbiased-scales"] = text_of(unbiased_scales);
  fingerprint["--scale-scope layer"] = text_of(per_layer);
  fingerprint["--outlier-threshold"] = text_of(outlier_threshold);
  fingerprint["--stat-bits"] = text_of(int64_t(stat_bits));
  fingerprint["--block-size"] = text_of(block_size);
  fingerprint["--damping"] = text_of(damping);
  fingerprint["--act-order"] = text_of(act_order);
  fingerprint["--static-groups"] = text_of(static_groups);
  fingerprint["--class-weight"] = text_of(class_weight);
  fingerprint["--one-pass"] = text_of(one_pass);
  fingerprint["--compensate"] = name_of(compensation);
  fingerprint["--tune"] = text_of(int64_t(tune_epochs));
  fingerprint["--tune-codes"] = text_of(tune_codes);
  fingerprint["--tune-hidden"] = text_of(tune_hidden);
  fingerprint["--asymmetric"] = text_of(asymmetric);
  fingerprint["--gptaq"] = text_of(gptaq);
  fingerprint["--correct-drift"] = text_of(correct_drift);
}

void add_model(RunFingerprint& fingerprint, const Checkpoint& source) {
  const auto add = [&](const std::filesystem::path& path) {
    fingerprint[path.filename().string()] = hex(content_hash_of_files({path}));
  };
  add(source.folder() / "config.json");
  for (const auto& file : source.files()) add(file);
  std::error_code ignored;
  for (const char* name : kSideFiles)
    if (std::filesystem::exists(source.folder() / name, ignored)) add(source.folder() / name);
}

std::vector<std::string> differences(const RunFingerprint& then, const RunFingerprint& now) {
  RunFingerprint all = then;
  all.insert(now.begin(), now.end());
  std::vector<std::string> found;
  for (const auto& [name, unused] : all) {
    const auto before = then.find(name), after = now.find(name);
    if (before == then.end())
      found.push_back(name + " is new");
    else if (after == now.end())
      found.push_back(name + " is gone");
    else if (before->second != after->second)
      found.push_back(name.starts_with("--")
                          ? str(name, " ", plain(before->second), " -> ", plain(after->second))
                          : name + " changed");
  }
  return found;
}

}  // namespace ballast
