// What the backend cannot keep is refused where a cache is made.
#include <gtest/gtest.h>

#include "engine/runtime/kv_cache.h"
#include "tests/support/expect_error.h"
#include "tests/support/simt/emulated_backend.h"

namespace ballast {
namespace {

TEST(CudaCache, CodesAreRefused) {
  const auto backend = test::emulated_backend();
  const nn::ModelFacts facts{.hidden = 32, .layers = 1, .heads = 2};
  EXPECT_GT(KvCache(*backend, facts, 1, 16).bytes(), 0);
  EXPECT_TRUE(throws_with("--kv-cache-dtype int8 needs --device cpu",
                          [&] { KvCache(*backend, facts, 1, 16, CacheType::int8); }));
}

}  // namespace
}  // namespace ballast
