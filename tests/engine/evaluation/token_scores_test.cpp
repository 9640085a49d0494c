#include "engine/evaluation/token_scores.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace ballast {
namespace {

TEST(TokenScores, NegativeLogLikelihoodOfKnownProbabilities) {
  const std::vector<float> logits = {std::log(0.1f) + 3, std::log(0.7f) + 3, std::log(0.2f) + 3};
  EXPECT_NEAR(score_token(logits, 0).nll, -std::log(0.1), 1e-6);
  EXPECT_NEAR(score_token(logits, 2).nll, -std::log(0.2), 1e-6);
  EXPECT_EQ(score_token(logits, 2).likeliest, 1);
}

TEST(TokenScores, LargeLogitsDoNotOverflow) {
  EXPECT_NEAR(score_token(std::vector<float>{1000, 0}, 1).nll, 1000, 1e-9);
  EXPECT_NEAR(score_token(std::vector<float>{-1e30f, -1e30f}, 0).nll, std::log(2.0), 1e-9);
}

TEST(TokenScores, DivergenceOfKnownDistributions) {
  const std::vector<float> q = {std::log(0.5f), std::log(0.5f)}, p = {std::log(0.9f) - 7, std::log(0.1f) - 7};
  const ComparedScore score = compare_token(q, p, 1);
  EXPECT_NEAR(score.kl, 0.9 * std::log(0.9 / 0.5) + 0.1 * std::log(0.1 / 0.5), 1e-6)
      << "the reference weighs";
  EXPECT_NEAR(score.model.nll, std::log(2.0), 1e-6);
  EXPECT_NEAR(score.reference.nll, -std::log(0.1), 1e-6);
  EXPECT_EQ(score.reference.likeliest, 0);
}

TEST(TokenScores, EqualRowsHaveNoDivergence) {
  const std::vector<float> logits = {0.3f, -2, 5, 1e-3f};
  EXPECT_EQ(compare_token(logits, logits, 2).kl, 0);
}

TEST(TokenScores, WhatTheReferenceRulesOutCostsNothing) {
  const std::vector<float> q = {0, 0, 0}, p = {0, 0, -INFINITY};
  EXPECT_NEAR(compare_token(q, p, 0).kl, std::log(1.5), 1e-12);
}

}  // namespace
}  // namespace ballast
