#include "kernels/ops/gather.h"

#include <gtest/gtest.h>

#include "tests/support/backends.h"
#include "tests/support/reference.h"

namespace ballast {
namespace {

TEST(Gather, CopiesTheRowsAskedForInTheirOrder) {
  const auto backend = test::cpu_backend("auto");
  test::Random random(1);
  const std::vector<float> x = random.floats(5 * 8);
  TensorView view(x.data(), DType::f32, {5, 7});  // the last of eight columns is not part of it
  view.strides[0] = 8;
  const std::vector<int32_t> rows{4, 0, 4, 2};
  std::vector<float> y(4 * 7);
  backend->run(GatherRows{.x = view, .rows = test::view_of(rows), .y = test::view_of(y, {4, 7})});
  for (size_t i = 0; i < rows.size(); ++i)
    for (size_t column = 0; column < 7; ++column)
      EXPECT_EQ(y[i * 7 + column], x[size_t(rows[i]) * 8 + column]) << i << ", " << column;
}

TEST(Gather, RefusesRowsThatAreNotThere) {
  const auto backend = test::cpu_backend("auto");
  const std::vector<float> x(6);
  std::vector<float> y(3);
  for (int32_t bad : {-1, 2}) {
    const std::vector<int32_t> rows{bad};
    const GatherRows op{
        .x = test::view_of(x, {2, 3}), .rows = test::view_of(rows), .y = test::view_of(y, {1, 3})};
    const std::string message = test::message_of<ContractError>([&] { backend->run(op); });
    EXPECT_NE(message.find(str("gather: row ", bad, " of 2")), std::string::npos) << message;
  }
}

}  // namespace
}  // namespace ballast
