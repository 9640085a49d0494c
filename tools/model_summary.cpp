#include "tools/model_summary.h"

#include <fmt/format.h>

#include <map>

namespace ballast {
namespace {

std::string describe(const DenseView& view) {
  return std::string(name_of(view.dtype));
}
std::string describe(const AffineView& view) {
  const bool whole_row = view.group_size == view.in_features;
  const char* half = view.half_zeros ? " half zeros" : "";
  return whole_row ? fmt::format("W{} per row{}", view.bits, half)
                   : fmt::format("W{} g{}{}", view.bits, view.group_size, half);
}
std::string describe(const SparseOutlierView& view) {
  return fmt::format("W{} g{} + outliers", view.bits, view.group_size);
}
std::string describe(const ResidualBinaryView& view) {
  return fmt::format("residual binary b{}", view.block_size);
}

LayerFacts facts_of(const nn::Linear& layer) {
  std::string encoding = layer.weight.visit([](const auto& view) { return describe(view); });
  if (layer.position_bias) encoding += " + position compensation";
  LayerFacts facts{layer.name, encoding, layer.out_features(), layer.in_features(),
                   layer.weight.bits_per_weight()};
  if (const auto* sparse = std::get_if<SparseOutlierView>(&layer.weight.encoding()))
    facts.outliers = sparse->outliers;
  return facts;
}

double bits_of(const std::vector<const std::vector<LayerFacts>*>& groups) {
  double bits = 0, weights = 0;
  for (const auto* group : groups) {
    for (const LayerFacts& layer : *group) {
      bits += layer.bits * layer.weights();
      weights += layer.weights();
    }
  }
  return weights > 0 ? bits / weights : 0;
}

}  // namespace

void ModelSummary::add_block(nn::Block& block) {
  std::map<std::string, bool> integers;
  for (const auto& branch : block.branches) {
    for (nn::Linear* layer : branch->expand()) integers[layer->input_site().name] = layer->runs_on_integers();
    integers[branch->contract().input_site().name] = branch->contract().runs_on_integers();
  }
  for (const nn::ActivationSite& site : block.sites())
    if (*site.grid) sites.push_back({site.name, **site.grid, integers[site.name]});
  for (const auto& branch : block.branches) {
    for (const nn::Linear* layer : branch->expand()) blocks.push_back(facts_of(*layer));
    blocks.push_back(facts_of(branch->contract()));
  }
}

void ModelSummary::add_outside(nn::Model& model) {
  for (const nn::Linear* layer : model.outer_linears()) outside.push_back(facts_of(*layer));
  outside.push_back(facts_of(model.lm_head()));
  nn::Linear& head = model.lm_head();
  if (head.input_grid) sites.push_back({head.input_site().name, *head.input_grid, head.runs_on_integers()});
}

double ModelSummary::block_bits() const {
  return bits_of({&blocks});
}

double ModelSummary::model_bits() const {
  return bits_of({&blocks, &outside});
}

double ModelSummary::outlier_share() const {
  double outliers = 0, weights = 0;
  for (const auto* group : {&blocks, &outside})
    for (const LayerFacts& layer : *group)
      if (layer.outliers >= 0) outliers += double(layer.outliers), weights += layer.weights();
  return weights > 0 ? outliers / weights : 0;
}

std::string sites_text(const std::vector<SiteFacts>& sites) {
  std::map<std::string, int64_t> counts;
  for (const SiteFacts& site : sites)
    ++counts[fmt::format("{} of {} bits {}", name_of(site.grid.kind), site.grid.bits,
                         site.integers ? "on integers" : "decoded")];
  std::vector<std::string> parts;
  for (const auto& [kind, count] : counts) parts.push_back(fmt::format("{} ×{}", kind, count));
  return fmt::format("{}", fmt::join(parts, ", "));
}

std::string encodings_text(const std::vector<LayerFacts>& layers) {
  std::map<std::string, int64_t> counts;
  for (const LayerFacts& layer : layers) ++counts[layer.encoding];
  std::vector<std::string> parts;
  for (const auto& [encoding, count] : counts) parts.push_back(fmt::format("{} ×{}", encoding, count));
  return fmt::format("{}", fmt::join(parts, ", "));
}

uint64_t tensor_bytes(const Checkpoint& checkpoint) {
  uint64_t bytes = 0;
  for (const StoredTensor& tensor : checkpoint.tensors()) bytes += tensor.bytes;
  return bytes;
}

nlohmann::json facts_json(const Checkpoint& checkpoint, nn::Model& model) {
  ModelSummary summary{.facts = model.facts(), .tied = model.tied_head()};
  for (int64_t index = 0; index < summary.facts.layers; ++index) summary.add_block(model.block(index));
  summary.add_outside(model);
  std::vector<LayerFacts> all = summary.blocks;
  all.insert(all.end(), summary.outside.begin(), summary.outside.end());
  double parameters = 0;
  for (const LayerFacts& layer : all) parameters += layer.weights();
  nlohmann::json facts = {{"architecture", summary.facts.architecture},
                          {"layers", summary.facts.layers},
                          {"hidden", summary.facts.hidden},
                          {"heads", summary.facts.heads},
                          {"ffn", summary.facts.ffn},
                          {"vocab", summary.facts.vocab},
                          {"max_positions", summary.facts.max_positions},
                          {"matrix_parameters", int64_t(parameters)},
                          {"bytes", tensor_bytes(checkpoint)},
                          {"block_bits_per_weight", summary.block_bits()},
                          {"bits_per_weight", summary.model_bits()},
                          {"encodings", encodings_text(all)},
                          {"block_encodings", encodings_text(summary.blocks)},
                          {"outside_encodings", encodings_text(summary.outside)}};
  if (summary.facts.image)
    facts["image"] = {{"height", summary.facts.image->height}, {"width", summary.facts.image->width}};
  return facts;
}

}  // namespace ballast
