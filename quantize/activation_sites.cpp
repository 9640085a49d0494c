#include "quantize/activation_sites.h"

#include "engine/core/on_host.h"
#include "engine/nn/backward.h"
#include "quantize/activation_search.h"
#include "quantize/records.h"

namespace ballast {
namespace {

class SquareObserver final : public nn::Observer {
 public:
  SquareObserver(Backend& backend, std::map<std::string, std::vector<float>>& squares)
      : backend_(backend), squares_(squares) {}
  void input(const nn::Linear&, const TensorView&) override {}
  void gradient(const nn::Linear& layer, const TensorView&, const TensorView& dz_there) override {
    const auto found = squares_.find(layer.name);
    if (found == squares_.end()) return;
    const OnHost dz(backend_, dz_there);
    for (int64_t t = 0; t < dz_there.shape[0]; ++t)
      for (int64_t i = 0; i < dz_there.shape[1]; ++i) found->second.push_back(dz.row(t)[i] * dz.row(t)[i]);
  }

 private:
  Backend& backend_;
  std::map<std::string, std::vector<float>>& squares_;
};

// Walks the parts of the sample.
template <class Body>
void each_part(HiddenStream& stream, const Body& body) {
  int64_t images = 0;
  for (int64_t index = 0; index < stream.parts() && images < kSearchedImages; ++index)
    stream.with_part(index, [&](const HiddenStream::Part& part) {
      body(part);
      images += int64_t(part.context.batch.spans.size());
    });
}

}  // namespace

const ActivationSites& ActivationChooser::settle_sites(const std::string& module,
                                                       const std::vector<nn::ActivationSite>& sites,
                                                       const std::function<RangeFold()>& choose) {
  const std::string key = grids_key(module);
  Settled& settled = settled_[module];
  if (journal_ && journal_->contains(key)) {
    std::tie(settled.sites, settled.fold.factor, settled.fold.shift) =
        sites_from_bytes(*journal_->find(key), key);
    for (const nn::ActivationSite& site : sites)
      if (const auto grid = settled.sites.find(site.name); grid != settled.sites.end())
        *site.grid = grid->second;
    return settled.sites;
  }
  settled.fold = choose();
  for (const nn::ActivationSite& site : sites)
    if (*site.grid) settled.sites[site.name] = **site.grid;
  if (journal_) journal_->append(key, to_bytes(settled.sites, settled.fold.factor, settled.fold.shift));
  return settled.sites;
}

ActivationSites ActivationChooser::settle(HiddenStream* stream, nn::Branch& branch,
                                          nn::Branch* float_branch, bool contract, const Layers& kept) {
  const Layers layers = contract ? Layers{&branch.contract()} : branch.expand();
  std::vector<nn::ActivationSite> sites;
  if (contract) sites = branch.inner_sites();
  for (nn::Linear* layer : layers) sites.push_back(layer->input_site());
  const std::string module = layers.front()->name;
  const ActivationSites& found = settle_sites(module, sites, [&] {
    const RangeFold fold = choose(*stream, branch, contract, !contract && kept.empty());
    for (nn::Linear* layer : kept) layer->input_grid.reset();
    return fold;
  });
  if (const RangeFold& fold = settled_[module].fold) {
    fold_branch(backend_, fold, branch);
    if (float_branch) fold_branch(backend_, fold, *float_branch);
  }
  return found;
}

ActivationSites ActivationChooser::settle_head(HiddenStream* stream) {
  nn::Linear& head = model_.lm_head();
  return settle_sites(head.name, {head.input_site()}, [&] {
    gather_squares(*stream, model_.facts().layers);
    return choose_input(
        {&head},
        sample(*stream, head.in_features(),
               [&](const HiddenStream::Part& part) { return model_.head_input(part.context, part.hidden); }),
        std::max(recipe_.activation_bits, 8), false);
  });
}

// Also where a run goes on in the middle of a block: the gradients must be those of its beginning.
void ActivationChooser::begin_block(HiddenStream* stream, int64_t index, const nn::Block& block) {
  const auto known = [&](const nn::Linear& layer) { return journal_ && journal_->contains(grids_key(layer.name)); };
  for (const auto& branch : block.branches)
    if (!known(*branch->expand().front()) || !known(branch->contract())) return gather_squares(*stream, index);
}

const RangeFold* ActivationChooser::fold_of(const std::string& module) const {
  for (const auto& [first, settled] : settled_)
    if (settled.fold && settled.sites.count(module + ".input")) return &settled.fold;
  return nullptr;
}

void ActivationChooser::apply(nn::Block& block) const {
  for (const auto& branch : block.branches)
    if (const RangeFold* fold = fold_of(branch->expand().front()->name))
      fold_branch(backend_, *fold, *branch);
  for (const nn::ActivationSite& site : block.sites())
    for (const auto& [first, settled] : settled_)
      if (const auto grid = settled.sites.find(site.name); grid != settled.sites.end())
        *site.grid = grid->second;
}

void ActivationChooser::gather_squares(HiddenStream& stream, int64_t index) {
  if (block_ == index) return;
  block_ = index;
  squares_.clear();
  std::vector<nn::Block*> blocks;
  for (int64_t i = index; i < model_.facts().layers; ++i) blocks.push_back(&model_.block(i));
  if (blocks.empty()) {
    squares_[model_.lm_head().name];
  } else {
    for (const auto& branch : blocks.front()->branches) {
      for (const nn::Linear* layer : branch->expand()) squares_[layer->name];
      squares_[branch->contract().name];
    }
  }
  SquareObserver observer(backend_, squares_);
  each_part(stream, [&](const HiddenStream::Part& part) {
    const nn::ForwardContext& plain = part.context;
    nn::back_propagate({plain.backend, plain.workspace, plain.batch, plain.cache, &observer},
                       {model_, blocks, part.hidden, nn::likeliest_class_loss()});
  });
}

std::vector<float> ActivationChooser::sample(
    HiddenStream& stream, int64_t width,
    const std::function<TensorView(const HiddenStream::Part&)>& rows) const {
  std::vector<float> all;
  each_part(stream, [&](const HiddenStream::Part& part) {
    const TensorView x = rows(part);
    CHECK(x.shape[1] == width);
    const OnHost read(backend_, x);
    for (int64_t t = 0; t < x.shape[0]; ++t) all.insert(all.end(), read.row(t), read.row(t) + width);
  });
  return all;
}

std::vector<std::span<const float>> ActivationChooser::squares(const Layers& layers) const {
  std::vector<std::span<const float>> all;
  for (const nn::Linear* layer : layers) all.push_back(squares_.at(layer->name));
  return all;
}

// The first tokens of the images, which count more than their number, and some of the others, each for those left out.
ActivationChooser::TokenSample ActivationChooser::thinned(const Layers& layers,
                                                          const std::vector<float>& x) const {
  const int64_t width = layers.front()->in_features(), tokens = int64_t(x.size()) / width;
  const int64_t length = model_.facts().max_positions,
                stride = std::max<int64_t>(1, tokens / kSearchedTokens);
  const bool all = tokens % length != 0 || stride == 1;  // the head reads one token of an image
  TokenSample sample;
  sample.squares.resize(layers.size());
  for (int64_t t = 0; t < tokens; ++t) {
    const bool first = !all && t % length == 0;
    if (!all && !first && t % stride != 0) continue;
    sample.x.insert(sample.x.end(), x.begin() + t * width, x.begin() + (t + 1) * width);
    for (size_t i = 0; i < layers.size(); ++i) {
      const std::vector<float>& squares = squares_.at(layers[i]->name);
      const int64_t out = layers[i]->out_features();
      CHECK(int64_t(squares.size()) == tokens * out);
      for (int64_t k = t * out; k < (t + 1) * out; ++k)
        sample.squares[i].push_back(squares[size_t(k)] * (all || first ? 1.0f : float(stride)));
    }
  }
  sample.view = TensorView(sample.x.data(), DType::f32, {int64_t(sample.x.size()) / width, width});
  return sample;
}

RangeFold ActivationChooser::choose_input(const Layers& layers, std::vector<float> all, int bits,
                                          bool may_fold) {
  const TokenSample sample = thinned(layers, all);
  const int64_t width = layers.front()->in_features();
  const TensorView whole(all.data(), DType::f32, {int64_t(all.size()) / width, width});
  const OutputErrors errors(backend_, {layers.begin(), layers.end()},
                            {sample.squares.begin(), sample.squares.end()});
  InputGrid best = search_input(backend_, sample.view, bits, errors);
  RangeFold fold;
  for (const double tail : {0.0, 0.0005, 0.005}) {
    if (!may_fold) break;
    const RangeFold trial = fit_fold(whole, tail);
    std::vector<float> folded(sample.x);
    const OutputView view(folded.data(), DType::f32, sample.view.shape);
    fold_values(trial, view);
    const InputGrid found = search_input(backend_, view, bits, errors, trial.factor);
    if (found.cost < best.cost) best = found, fold = trial;
  }
  for (nn::Linear* layer : layers) layer->input_grid = best.grid;
  return fold;
}

RangeFold ActivationChooser::choose(HiddenStream& stream, nn::Branch& branch, bool contract, bool may_fold) {
  if (auto* attention = dynamic_cast<nn::AttentionBranch*>(&branch);
      contract && attention && !attention->probabilities.empty())
    choose_inner(stream, *attention);
  const Layers layers = contract ? Layers{&branch.contract()} : branch.expand();
  may_fold &= recipe_.fold_ranges && branch.norm_place == nn::NormPlace::before && branch.norm.weight;
  return choose_input(layers,
                      sample(stream, layers.front()->in_features(),
                             [&](const HiddenStream::Part& part) {
                               const TensorView x = branch.expand_input(part.context, part.hidden);
                               return contract ? branch.contract_input(part.context, x) : x;
                             }),
                      recipe_.activation_bits, may_fold);
}

void ActivationChooser::choose_inner(HiddenStream& stream, nn::AttentionBranch& branch) {
  const int64_t width = branch.q.out_features();
  std::vector<AttentionSpan> spans;
  int64_t rows = 0;
  each_part(stream, [&](const HiddenStream::Part& part) {
    for (AttentionSpan span : part.context.batch.spans) {
      span.first_row = int32_t(rows);
      rows += span.rows;
      spans.push_back(span);
    }
  });
  std::vector<float> operands[3];
  const nn::Linear* layers[] = {&branch.q, &branch.k, &branch.v};
  for (int i = 0; i < 3; ++i)
    operands[i] = sample(stream, width, [&](const HiddenStream::Part& part) {
      const TensorView x = branch.expand_input(part.context, part.hidden);
      const OutputView y = part.context.workspace.floats({x.shape[0], width});
      layers[i]->forward(part.context, x, y);
      return TensorView(y);
    });
  const auto view = [&](const std::vector<float>& values) {
    return TensorView(values.data(), DType::f32, {rows, width});
  };
  const Layers contract{&branch.contract()};
  const OutputErrors errors(backend_, {contract.begin(), contract.end()}, squares(contract));
  const AttentionGrids grids =
      search_attention(backend_, {branch, view(operands[0]), view(operands[1]), view(operands[2]), spans},
                       recipe_.activation_bits, recipe_.logarithms, errors);
  branch.query_grid = grids.queries;
  branch.key_grid = grids.keys;
  branch.probability_grid = grids.probabilities;
  branch.value_grid = grids.values;
}

}  // namespace ballast
