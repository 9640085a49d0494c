// Tuning: after every layer has its codes, scales, biases and where asked codes are moved together by gradient descent on
// KL(float model ‖ quantized model) over the calibration tokens. Zero points and everything else stay.
//
// KL alone sees one row of logits for each image: too few for what can move, so what is learned of 100 images is learned by
// heart. `hidden_weight` adds the distance of every token's hidden state behind every block b,
//
//   X · Σ_b Σ_t ‖h_bt − H_bt‖² / Σ_t ‖H_bt − mean(H_bt)‖²     (H: the float model's)
//
// as one distils by features (FitNets, arXiv 1412.6550). Of text, where each token has its own logits, it did not help.
//
// Step sizes are learned as in EfficientQAT's second phase (arXiv 2407.11062, §3.3), with two differences: the loss is the
// distance to the float model, so no labels and no text but the calibration's are needed, and biases take part, which is
// bias compensation by the loss itself.
//
// Codes are learned as their method left them, not from the weights anew: each has a level, a real number that begins at
// the code. The layer computes with round(level), and the level takes the gradient of what it was rounded to (straight
// through, arXiv 1308.3432, as in LSQ, arXiv 1902.08153). So a code changes where many steps agree that it should. AdaRound
// (arXiv 2004.10568) trains roundings, too, but towards one layer's outputs, with a choice of two codes and a penalty.
#pragma once

#include <functional>
#include <vector>

#include "quantize/activation_sites.h"
#include "quantize/data.h"
#include "quantize/records.h"

namespace ballast {

struct TuningOptions {
  int epochs = 0;            ///< passes over the calibration tokens
  double scale_rate = 2e-3;  ///< Adam's step (arXiv 1412.6980) relative to a scale, falling to 0 at the end
  double bias_rate = 2e-3;   ///< the same relative to the spread of the layer's outputs
  double code_rate = 0;      ///< the same of a code's level, in codes; 0: codes stay
  double hidden_weight = 0;  ///< X: what the hidden states' distance counts beside the KL
};

struct TuningResult {
  double before = 0;       ///< mean KL per token in nats over the first epoch's first tenth
  double after = 0;        ///< over the last tenth of the last epoch, as the steps saw it
  double codes_moved = 0;  ///< share of the tuned layers' codes that ended elsewhere
};

/// `activations`: what the model rounds besides, or null; it stays. `records`: all quantized layers of the blocks, in
/// order; those with a uniform grid and a bias are tuned in place, scales to binary16 at the end. `model`: the float model;
/// its blocks are loaded beside the quantized ones.
TuningResult tune(Backend& backend, nn::Model& model, const CalibrationTokens& tokens,
                  std::vector<LayerRecord>& records, const ActivationChooser* activations,
                  const TuningOptions& options,
                  const std::function<void(int64_t done, int64_t all)>& progress);

}  // namespace ballast
