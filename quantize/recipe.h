// What to do with a model: every choice a user can make about quantization, in one value.
#pragma once

#include <cstdint>
#include <map>
#include <regex>
#include <string>
#include <vector>

namespace ballast {

/// How compensation enters (arXiv 2404.01892; the centred form and drift correction are our extensions).
enum class Compensation : uint8_t {
  none,
  channel,  ///< b += (W − Q)·E[x]: the mean output error of each channel
  joint,    ///< codes chosen for the centred second moment E[xxᵀ] − E[x]E[x]ᵀ, then as channel
  token,  ///< as joint (channel with a method that sees no inputs), but the first position, an image's class token,
          ///< gets a vector of its own, in an extra tensor
  position,  ///< as channel, plus the deviation of each absolute position's mean error, in an extra tensor
};
const char* name_of(Compensation compensation);
/// Error listing the known names.
Compensation compensation_named(const std::string& name);

/// Which quadratic form of a layer's error the methods minimize.
enum class CurvatureKind : uint8_t {
  activation,       ///< E[x xᵀ] of the layer's inputs: its output error
  output_adaptive,  ///< Σ GᵀG of the weight's gradients, sample by sample (OAC, arXiv 2405.15025)
  guided,           ///< E[g² x xᵀ] with the output's gradients, by groups of rows (arXiv 2505.07004)
};
const char* name_of(CurvatureKind curvature);
/// Error listing the known names.
CurvatureKind curvature_named(const std::string& name);

/// The uniform grid of one group: how scale and zero point are found.
struct GridOptions {
  int bits = 4;            ///< 2, 3, 4, 6 or 8; 1 for billm; codes of 6 bits are kept in 8
  int64_t group_size = 0;  ///< columns that share a scale; 0: the whole row
  bool symmetric = false;  ///< zero point in the middle of the codes
  int half_zero_bits =
      0;  ///< codes of up to so many bits have half zero points (encodings/affine.h); at most 4
  bool clip_search = false;  ///< shrink the range to what rounds best, Σ|error|^2.4 over up to 80 % shrinkage
  double range_shrink = 1;  ///< β: the range is multiplied by this first; (0, 1], or 0: standard_range_shrink

  bool half_zeros() const { return bits <= half_zero_bits; }
};

/// Bits that a code takes in memory and in files.
constexpr int stored_code_bits(int bits) {
  return bits == 6 ? 8 : bits;
}

/// What single methods have beyond the grid. -1: the method's own value (Recipe::fill_defaults).
struct MethodOptions {
  // Coordinate descent (COMQ, arXiv 2403.07134; after GPTQ as a polish)
  int sweeps = -1;            ///< at most; 0: none
  bool greedy_order = false;  ///< each row by descending ‖x_j‖·|w_j|, the paper's order; slower
  bool anneal = true;         ///< damping falls from sweep to sweep, from 6 sweeps on
  bool refit_scales = true;
  bool unbiased_scales = true;  ///< afterwards each row gets its output's full size back, see unbias.h
  bool per_layer = false;       ///< comq: one scale for the whole layer

  // SpQR (arXiv 2306.03078)
  double outlier_threshold = 0.2;  ///< share of the mean sensitivity beyond which a weight stays in 16 bits
  int stat_bits = 3;               ///< of the quantized scales and zero points

  // BiLLM (arXiv 2402.04291)
  int64_t block_size = 128;  ///< columns that share salient columns and a row's coefficients
};

/// The β that measured best on the bundled model at each width: few levels are better spent on the many small weights.
/// Related: MagR (arXiv 2406.00800) shrinks by 0.8 to 0.95.
double standard_range_shrink(int bits, bool whole_row);

/// Another width or group size, or none at all, for the modules whose name matches.
struct LayerOverride {
  std::string pattern;  ///< ECMAScript regular expression searched in the module name
  std::regex regex;
  int bits = 0;             ///< 0: leave these modules in float
  int64_t group_size = -1;  ///< -1: as the recipe says
};

struct Recipe {
  std::string name;  ///< of the named recipe that filled in what was left open, for reports; empty: none
  std::string method = "gptq";
  GridOptions grid;
  std::vector<LayerOverride> overrides;  ///< the last match wins
  /// Bits per weight to meet on average, the head included, with a width for each layer (bit_allocation.h); 0: one
  /// width for all.
  double target_bits = 0;
  std::map<std::string, int> layer_bits;  ///< what bit allocation chose; an override wins
  int head_bits = 0;  ///< also quantize the head (and the embedding tied to it); 0: leave it

  /// Width of the codes that activations are rounded to (activation_search.h); 0: they stay in float.
  int activation_bits = 0;
  bool fold_ranges =
      true;  ///< where it helps, channels of normalized inputs are brought to one range (range_fold.h)
  bool logarithms =
      true;  ///< probabilities may have levels at powers of 2 or √2; off: twin grids, as in PTQ4ViT

  CurvatureKind curvature = CurvatureKind::activation;
  int64_t curvature_groups = 4;  ///< guided: runs of rows with a curvature of their own, at most

  // GPTQ (arXiv 2210.17323)
  double damping = 0.01;       ///< λ: this share of mean(diag H) is added to the diagonal
  bool act_order = false;      ///< columns by descending diag H, with grids fitted beforehand
  bool static_groups = false;  ///< grids fitted on the original weights
  MethodOptions options;
  int64_t class_weight =
      1;  ///< of an image, the first token counts as so many: the answer is read from it alone
  bool one_pass =
      false;  ///< statistics of a block's layers from one pass over the unquantized block, as the paper does

  Compensation compensation = Compensation::joint;
  bool asymmetric = false;     ///< codes approximate W' = W + W·(G − H)·(H + λI)⁻¹, see target.h
  double gptaq = 0;            ///< α of GPTAQ's drift feedback, see gptaq.h; 0: none
  int tune_epochs = 0;         ///< after all layers, see tuning.h
  double tune_codes = 0;       ///< rate at which tuning moves codes, in codes a step; 0: they stay
  double tune_hidden = 0;      ///< what hidden states count in tuning beside the KL
  bool correct_drift = false;  ///< bias also takes W·(E[x_float] − E[x]): what earlier layers' errors shifted

  /// Whether a float stream runs beside the quantized one, and whether their inputs are correlated.
  bool keeps_reference() const { return correct_drift || correlates_inputs(); }
  /// Whether codes are chosen for centred inputs.
  bool centres_inputs() const;
  bool correlates_inputs() const { return asymmetric || gptaq > 0; }
  /// Puts the method's own values where a choice is open: bits 0, a group size, damping or sweeps of -1.
  /// Error when bits is open and the method has more than one width.
  void fill_defaults();
  /// Error for a value out of range or a combination that makes no sense, with the reason.
  void check() const;
  /// The grid for one module of a block with its group size resolved (1 … in_features), or bits 0 when it
  /// stays in float. Error when the group size does not divide in_features.
  GridOptions grid_for(const std::string& module, int64_t in_features) const;
  /// The same for the head.
  GridOptions head_grid(const std::string& module, int64_t in_features) const;
};

}  // namespace ballast
