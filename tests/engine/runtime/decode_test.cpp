// A decode step allocates nothing and takes no lock once the largest step has been seen: the C library's allocator and
// lock are counted while one runs.
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <pthread.h>

#include <atomic>
#include <cerrno>
#include <mutex>

#include "engine/io/quantized.h"
#include "engine/runtime/runner.h"
#include "models/registry.h"
#include "tests/support/matrices.h"
#include "tests/support/temp_folder.h"

// Sanitizers bring an allocator and a lock of their own.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__GLIBC__)
#define BALLAST_COUNTS_CALLS 0
#else
#define BALLAST_COUNTS_CALLS 1
#endif

namespace {
std::atomic<bool> counting{false};
std::atomic<int> allocations{0}, locks{0};
}  // namespace

#if BALLAST_COUNTS_CALLS
extern "C" {
void* __libc_malloc(size_t bytes);
void* __libc_calloc(size_t count, size_t bytes);
void* __libc_realloc(void* pointer, size_t bytes);
void* __libc_memalign(size_t alignment, size_t bytes);

void* malloc(size_t bytes) {
  if (counting) ++allocations;
  return __libc_malloc(bytes);
}
void* calloc(size_t count, size_t bytes) {
  if (counting) ++allocations;
  return __libc_calloc(count, bytes);
}
void* realloc(void* pointer, size_t bytes) {
  if (counting) ++allocations;
  return __libc_realloc(pointer, bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes) {
  if (counting) ++allocations;
  return __libc_memalign(alignment, bytes);
}
int posix_memalign(void** out, size_t alignment, size_t bytes) {
  if (counting) ++allocations;
  *out = __libc_memalign(alignment, bytes);
  return *out ? 0 : ENOMEM;
}
int pthread_mutex_lock(pthread_mutex_t* mutex) {
  static const auto original =
      reinterpret_cast<int (*)(pthread_mutex_t*)>(dlsym(RTLD_NEXT, "pthread_mutex_lock"));
  if (counting) ++locks;
  return original(mutex);
}
}
#endif

namespace ballast {
namespace {

const std::filesystem::path kDemo = std::filesystem::path(BALLAST_SOURCE_DIR) / "models/demo";

// The bundled model with random codes of `bits` bits in place of its linears; 16: as it is.
void write_model(const std::filesystem::path& folder, int bits) {
  const Checkpoint source = Checkpoint::open(kDemo);
  CheckpointWriter out(folder, {});
  test::Random random(3);
  for (const StoredTensor& tensor : source.tensors()) {
    if (bits == 16 || tensor.shape.size() != 2 || tensor.name.find("embed_positions") != std::string::npos) {
      out.copy(source, tensor);
      continue;
    }
    write_quantized(out, tensor.name.substr(0, tensor.name.rfind('.')),
                    test::random_affine(random, bits, tensor.shape[0], tensor.shape[1], 128),
                    PackedLayout::gptq_v2, false);
  }
  nlohmann::json config = source.config();
  if (bits != 16)
    config["quantization_config"] = packed_config_json(
        {.layout = PackedLayout::ballast, .bits = bits, .group_size = 128, .encodings = {kHalfZeros}});
  out.finish(config);
}

struct Case {
  int bits, threads;
  const char* activations;
  CacheType cache = CacheType::f32;
};

class Decode : public testing::TestWithParam<Case> {};

TEST_P(Decode, AllocatesNothingAndTakesNoLock) {
  if (!BALLAST_COUNTS_CALLS) GTEST_SKIP() << "calls cannot be counted here";
  const TempFolder folder;
  write_model(folder / "model", GetParam().bits);
  const auto backend =
      find_backend({.device = "cpu", .threads = GetParam().threads, .activations = GetParam().activations});
  const Checkpoint checkpoint = Checkpoint::open(folder / "model");
  const auto model = load_model(checkpoint, *backend);
  model->load_all();
  constexpr int64_t kPositions = 256, kWarm = 150;  // a second block of positions is there
  KvCache cache(*backend, model->facts(), model->facts().layers, kPositions, GetParam().cache);
  PageTable pages;
  ASSERT_TRUE(cache.reserve(pages, kPositions));
  Runner runner(*backend, *model, cache);
  Batch batch;
  std::vector<int32_t> ids(kPositions, 7);
  const auto step = [&](int64_t past, int64_t tokens) {
    batch.clear();
    batch.add(std::span(ids).subspan(size_t(past), size_t(tokens)), past, pages);
    batch.want_logits();
    ASSERT_TRUE(runner.run(batch));
  };
  step(0, kWarm);
  step(kWarm, 1);
  allocations = locks = 0;
  counting = true;
  for (int64_t past = kWarm + 1; past < kPositions; ++past) step(past, 1);
  counting = false;
  EXPECT_EQ(allocations, 0);
  EXPECT_EQ(locks, 0);
  counting = true;  // and the counters do count
  std::vector<int>* const some = new std::vector<int>(100);
  std::mutex mutex;
  mutex.lock();
  counting = false;
  mutex.unlock();
  delete some;
  EXPECT_EQ(allocations, 2);
  EXPECT_EQ(locks, 1);
}

INSTANTIATE_TEST_SUITE_P(, Decode,
                         testing::Values(Case{16, 2, "f32"}, Case{4, 1, "f32"}, Case{4, 2, "f32"},
                                         Case{3, 2, "int8"}, Case{2, 5, "f32"},
                                         Case{4, 2, "f32", CacheType::int8}),
                         [](const auto& test) {
                           return "bits" + std::to_string(test.param.bits) + "_" +
                                  std::to_string(test.param.threads) + "_" + test.param.activations +
                                  (test.param.cache == CacheType::int8 ? "_cache_int8" : "");
                         });

}  // namespace
}  // namespace ballast
