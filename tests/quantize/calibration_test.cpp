#include "quantize/calibration.h"

#include <gtest/gtest.h>

#include <cmath>

#include "models/registry.h"
#include "tests/support/random.h"

namespace ballast {
namespace {

constexpr double kHalf = 0x1p-11;  // relative rounding of binary16

TEST(StoredRows, KeepAnyMagnitudeToElevenBits) {
  const auto backend = find_backend({.device = "cpu"});
  constexpr int64_t kRows = 9, kWidth = 20;
  test::Random random(1);
  std::vector<float> x = random.floats(kRows * kWidth), loaded(x.size());
  for (int64_t row = 0; row < kRows; ++row)  // far beyond binary16's 65504 and far below its smallest
    for (int64_t i = 0; i < kWidth; ++i) x[size_t(row * kWidth + i)] *= std::ldexp(1.0f, int(20 * row) - 80);
  const StoredRows rows(*backend, kRows, kWidth);
  EXPECT_EQ(rows.bytes(), kRows * (2 * kWidth + 4));
  for (int64_t first = 0; first < kRows; first += 3) {
    rows.store(*backend, first, {x.data() + first * kWidth, DType::f32, {3, kWidth}});
    rows.load(*backend, first, {loaded.data() + first * kWidth, DType::f32, {3, kWidth}});
  }
  for (size_t i = 0; i < x.size(); ++i)
    EXPECT_NEAR(loaded[i], x[i],
                kHalf * std::abs(x[i]) + 0x1p-39 * std::ldexp(1.0, 20 * int(i / kWidth) - 80));
}

struct StreamFixture {
  const Checkpoint checkpoint = Checkpoint::open(std::string(BALLAST_SOURCE_DIR) + "/tests/golden/opt/plain");
  const std::unique_ptr<Backend> backend = find_backend({.device = "cpu"});
  const std::unique_ptr<nn::Model> model = load_model(checkpoint, *backend);
  CalibrationTokens tokens{7, 20, {}, "random"};

  StreamFixture() {
    test::Random random(2);
    for (int64_t i = 0; i < tokens.samples * tokens.length; ++i)
      tokens.ids.push_back(int32_t(random.below(model->facts().vocab)));
  }
  std::vector<float> values(HiddenStream& stream) const {
    std::vector<float> out;
    stream.for_each_part([&](const HiddenStream::Part& part) {
      EXPECT_EQ(part.first_row * part.hidden.shape[1], int64_t(out.size()));
      out.insert(out.end(), part.hidden.as<float>(), part.hidden.as<float>() + part.hidden.shape.elements());
    });
    return out;
  }
};

TEST(HiddenStream, BeginsWithTheEmbeddingAndKeepsItWhilePassesOnlyLook) {
  const StreamFixture fixture;
  HiddenStream stream(*fixture.backend, *fixture.model, fixture.tokens);
  const std::vector<float> first = fixture.values(stream);
  EXPECT_EQ(fixture.values(stream), first);
  size_t at = 0;
  stream.for_each_part([&](const HiddenStream::Part& part) {
    const OutputView exact = part.context.workspace.floats(part.hidden.shape);
    fixture.model->embed(part.context, exact);
    for (int64_t i = 0; i < exact.shape.elements(); ++i, ++at)
      ASSERT_NEAR(first[at], exact.as<float>()[i], kHalf * std::abs(exact.as<float>()[i]) + 1e-9);
  });
  EXPECT_EQ(at, first.size());
}

TEST(HiddenStream, WhatAPassLeavesBecomesTheStream) {
  const StreamFixture fixture;
  HiddenStream stream(*fixture.backend, *fixture.model, fixture.tokens);
  std::vector<float> expected = fixture.values(stream);
  for (float& value : expected) value *= 4;  // exact in any binary format
  stream.for_each_part([](const HiddenStream::Part& part) {
    for (int64_t i = 0; i < part.hidden.shape.elements(); ++i) part.hidden.as<float>()[i] *= 4;
  });
  EXPECT_EQ(fixture.values(stream), expected);
}

}  // namespace
}  // namespace ballast
