#include "kernels/view.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/support/reference.h"

namespace ballast {
namespace {

using test::message_of;

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(Shape, CountsComparesAndPrints) {
  const Shape shape{2, 3, 4};
  EXPECT_EQ(shape.elements(), 24);
  EXPECT_EQ(shape.text(), "[2, 3, 4]");
  EXPECT_EQ(Shape{}.elements(), 1);
  EXPECT_EQ(Shape{}.text(), "[]");
  EXPECT_NE(shape, (Shape{2, 3}));
  EXPECT_THROW((Shape{1, 2, 3, 4, 5}), ContractError);
}

TEST(View, RowsKeepStridesAndMoveThePointer) {
  std::vector<float> data(24);
  OutputView view(data.data(), DType::f32, {4, 6});
  EXPECT_TRUE(view.contiguous());
  EXPECT_EQ(view.bytes(), 96);
  const OutputView part = view.rows(1, 2);
  EXPECT_EQ(part.data, data.data() + 6);
  EXPECT_EQ(part.shape, (Shape{2, 6}));
  EXPECT_EQ(part.row(1), data.data() + 12);
  EXPECT_THROW(view.rows(3, 2), ContractError);
  EXPECT_THROW(view.rows(-1, 1), ContractError);
}

TEST(View, GapsBetweenRowsAreNotContiguousButOneRowIs) {
  std::vector<float> data(24);
  TensorView view(data.data(), DType::f32, {3, 4});
  view.strides[0] = 8;
  EXPECT_FALSE(view.contiguous());
  EXPECT_EQ(view.row(2), data.data() + 16);
  EXPECT_TRUE(view.rows(1, 1).contiguous());
}

TEST(DimChecker, NamesOpOperandAndDimensionOfAMismatch) {
  std::vector<float> data(64);
  DimChecker dims("blend");
  dims.match(TensorView(data.data(), DType::f32, {2, 8}), "left", {"tokens", "hidden"});
  EXPECT_EQ(dims["tokens"], 2);
  EXPECT_EQ(dims["hidden"], 8);
  const std::string message = message_of<ContractError>([&] {
    dims.match(TensorView(data.data(), DType::f32, {2, 9}), "right", {"tokens", "hidden"});
  });
  EXPECT_TRUE(has(message, "blend: hidden is 9 in right but 8 in left")) << message;
}

TEST(DimChecker, NamesOpAndOperandOfAWrongRank) {
  std::vector<float> data(64);
  DimChecker dims("blend");
  const std::string message = message_of<ContractError>([&] {
    dims.match(TensorView(data.data(), DType::f32, {2, 3, 4}), "left", {"tokens", "hidden"});
  });
  EXPECT_TRUE(has(message, "blend: left has shape [2, 3, 4], expected rank 2")) << message;
}

TEST(DimChecker, RefusesAStridedInnermostDimension) {
  std::vector<float> data(64);
  TensorView view(data.data(), DType::f32, {4, 4});
  view.strides = {1, 4};
  DimChecker dims("blend");
  const std::string message = message_of<ContractError>([&] {
    dims.match(view, "left", {"tokens", "hidden"});
  });
  EXPECT_TRUE(has(message, "blend: left is not contiguous in its last dimension")) << message;
}

TEST(DimChecker, NamesOpOperandAndTypeOfAWrongDtype) {
  std::vector<float> data(4);
  const DimChecker dims("blend");
  const TensorView view(data.data(), DType::f16, {4});
  EXPECT_NO_THROW(dims.dtype(view, "left", {DType::f32, DType::f16}));
  const std::string message = message_of<ContractError>([&] { dims.dtype(view, "left", {DType::f32}); });
  EXPECT_TRUE(has(message, "blend: left has dtype f16")) << message;
}

TEST(DimChecker, RefusesAnUnknownDimension) {
  const DimChecker dims("blend");
  EXPECT_TRUE(has(message_of<ContractError>([&] { dims["depth"]; }), "blend: no dimension depth"));
}

}  // namespace
}  // namespace ballast
