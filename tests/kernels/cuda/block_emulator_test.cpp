// The emulator against planted mistakes: each must be caught, and the same code without the mistake must run.
#include "tests/support/simt/block_emulator.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/check.h"
#include "kernels/cuda/launch.h"
#include "tests/support/random.h"
#include "tests/support/simt/emulated_memory.h"

namespace ballast {
namespace {

using dev::kWarp;
using dev::Shared;
using dev::SharedArena;
using simt::Fault;

// Runs a piece of device code that captures what it likes.
template <class Body>
void run(const simt::Launch& launch, Body body) {
  simt::run_blocks(
      launch, [](const void* state) { (*static_cast<const Body*>(state))(); }, &body);
}

// The message of the Fault that some order of warps brings to light, or nothing.
template <class Body>
std::string fault_of(const simt::Launch& launch, Body body) {
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    simt::set_seed(seed);
    try {
      run(launch, body);
    } catch (const Fault& fault) {
      simt::set_seed(1);
      return fault.what();
    }
  }
  simt::set_seed(1);
  return "";
}

bool says(const std::string& message, const std::string& part) {
  return message.find(part) != std::string::npos;
}

// Every thread of two warps copies 16 bytes and reads its neighbour's.
std::string copy_through_shared(bool waits, bool meets) {
  std::vector<dev::Words4> from(64, dev::Words4{1, 2, 3, 4});
  std::vector<uint32_t> to(64);
  return fault_of({.threads = 64, .shared_bytes = 64 * 16}, [&, waits, meets] {
    SharedArena arena;
    const auto s_lines = arena.take<dev::Words4>(64);
    dev::copy_async(s_lines.from(dev::thread()), &from[size_t(dev::thread())], true);
    dev::copy_commit();
    if (waits) dev::copy_wait<0>();
    if (meets) dev::sync_block();
    to[size_t(dev::thread())] = s_lines.get((dev::thread() + 33) % 64).w;
  });
}

TEST(SimtEmulator, CopiesThatAreWaitedForArrive) {
  EXPECT_EQ(copy_through_shared(true, true), "");
}
TEST(SimtEmulator, CatchesAMissingWaitForACopy) {
  EXPECT_TRUE(says(copy_through_shared(false, true), "was not waited for"))
      << copy_through_shared(false, true);
}
TEST(SimtEmulator, CatchesAMissingBarrierBehindACopy) {
  const std::string message = copy_through_shared(true, false);
  EXPECT_TRUE(says(message, "without a barrier") || says(message, "nothing wrote")) << message;
}

TEST(SimtEmulator, AWaitLeavesTheNewestGroupsOnTheirWay) {
  std::vector<dev::Words4> from(2, dev::Words4{5, 6, 7, 8});
  const auto read_group = [&](int group) {
    return fault_of({.threads = 32, .shared_bytes = 32 * 32}, [&, group] {
      SharedArena arena;
      const auto s_first = arena.take<dev::Words4>(32), s_second = arena.take<dev::Words4>(32);
      dev::copy_async(s_first.from(dev::thread()), &from[0], true);
      dev::copy_commit();
      dev::copy_async(s_second.from(dev::thread()), &from[1], false);
      dev::copy_commit();
      dev::copy_wait<1>();
      (group == 0 ? s_first : s_second).get(dev::thread());
    });
  };
  EXPECT_EQ(read_group(0), "");
  EXPECT_TRUE(says(read_group(1), "was not waited for"));
}

TEST(SimtEmulator, CatchesADivergentBarrier) {
  const auto meet = [](bool all) {
    return fault_of({.threads = 64}, [all] {
      if (all || dev::thread() < 40) dev::sync_block();
    });
  };
  EXPECT_EQ(meet(true), "");
  EXPECT_TRUE(says(meet(false), "wait for ever")) << meet(false);
}

TEST(SimtEmulator, ABarrierTellsWhetherAnyThreadSaysSo) {
  std::vector<int> heard(64 * 6);
  EXPECT_EQ(fault_of({.threads = 64},
                     [&] {
                       for (int round = 0; round < 6; ++round)
                         heard[size_t(64 * round + dev::thread())] =
                             dev::sync_block_any(round % 3 == 0 && dev::thread() == 37);
                     }),
            "");
  for (size_t i = 0; i < heard.size(); ++i) ASSERT_EQ(heard[i], i / 64 % 3 == 0) << i;
  EXPECT_TRUE(says(fault_of({.threads = 64},
                            [] {
                              if (dev::warp() == 0) return dev::sync_block();
                              dev::sync_block_any(true);
                            }),
                   "other threads of its block in sync_block"));
}

TEST(SimtEmulator, CatchesAnAccessOutsideItsSharedArray) {
  const auto write = [](int count) {
    return fault_of({.threads = 32, .shared_bytes = 1024}, [count] {
      SharedArena arena;
      const auto s_values = arena.take<float>(count), s_behind = arena.take<float>(64);
      s_values.set(dev::thread(), 1);
      s_behind.set(dev::thread(), 2);
    });
  };
  EXPECT_EQ(write(32), "");
  EXPECT_TRUE(says(write(28), "outside its array")) << write(28);
  // And an array beyond what the launch asked for.
  EXPECT_TRUE(says(fault_of({.threads = 32, .shared_bytes = 100},
                            [] { SharedArena().take<float>(32).set(dev::thread(), 1); }),
                   "outside its array"));
}

TEST(SimtEmulator, CatchesAMissingBarrierBetweenWarps) {
  const auto exchange = [](bool before, bool after) {
    return fault_of({.threads = 64, .shared_bytes = 256}, [before, after] {
      const auto s_values = SharedArena().take<int>(64);
      s_values.set(dev::thread(), dev::thread());
      if (before) dev::sync_block();
      const int other = s_values.get(63 - dev::thread());
      if (after) dev::sync_block();
      s_values.set(dev::thread(), other);
    });
  };
  EXPECT_EQ(exchange(true, true), "");
  EXPECT_NE(exchange(false, true), "");
  EXPECT_TRUE(says(exchange(true, false), "without a barrier")) << exchange(true, false);
}

TEST(SimtEmulator, AWarpBarrierOrdersItsLanesOnly) {
  const auto exchange = [](bool within_warp, bool meets) {
    return fault_of({.threads = 64, .shared_bytes = 256}, [within_warp, meets] {
      const auto s_values = SharedArena().take<int>(64);
      s_values.set(dev::thread(), dev::thread());
      if (meets) dev::sync_warp();
      s_values.get(within_warp ? dev::thread() ^ 1 : 63 - dev::thread());
    });
  };
  EXPECT_EQ(exchange(true, true), "");
  EXPECT_NE(exchange(true, false), "");
  EXPECT_NE(exchange(false, true), "");
}

TEST(SimtEmulator, CatchesLanesThatPartInsideAWarp) {
  EXPECT_TRUE(says(fault_of({.threads = 32},
                            [] {
                              if (dev::lane() < 16) {
                                dev::shuffle_xor(1.0f, 1);
                              } else {
                                dev::sync_warp();
                              }
                            }),
                   "other lanes"));
  EXPECT_TRUE(says(fault_of({.threads = 32},
                            [] {
                              if (dev::lane() != 7) dev::warp_sum(1);
                            }),
                   "wait for ever"));
}

TEST(SimtEmulator, CatchesASharedReadOfWhatNothingWrote) {
  EXPECT_TRUE(says(fault_of({.threads = 32, .shared_bytes = 128},
                            [] { SharedArena().take<float>(32).get(dev::thread()); }),
                   "nothing wrote"));
}

TEST(SimtEmulator, CatchesRowsAndCopiesOffTheirAlignment) {
  std::vector<dev::Words4> from(2);
  EXPECT_TRUE(says(fault_of({.threads = 32, .shared_bytes = 1024},
                            [&] {
                              const auto s_lines = SharedArena().take<uint16_t>(512);
                              dev::copy_async(s_lines.from(8 * dev::thread() + 1), &from[0], true);
                            }),
                   "16-byte aligned"));
  EXPECT_TRUE(says(fault_of({.threads = 32, .shared_bytes = 1024},
                            [&] {
                              const auto s_lines = SharedArena().take<dev::Words4>(64);
                              dev::copy_async(s_lines.from(dev::thread()),
                                              reinterpret_cast<char*>(from.data()) + 4, true);
                            }),
                   "16-byte aligned"));
}

TEST(SimtEmulator, MatrixLoadsFeedAMultiplication) {
  test::Random random(3);
  // x [8 tokens][32], w [16 rows][32], both small integers, so that every sum is exact.
  std::vector<float> x(8 * 32), w(16 * 32), y(16 * 8);
  for (auto* values : {&x, &w})
    for (float& value : *values) value = float(random.below(17) - 8);
  simt::take_counts();
  for (const bool padded : {false, true}) {
    const int stride = padded ? 40 : 64;
    run({.threads = 32, .shared_bytes = 8 * 64 * 2}, [&, stride] {
      const auto s_x = SharedArena().take<uint16_t>(8 * stride);
      for (int i = dev::thread(); i < 8 * 32; i += kWarp)
        s_x.set(i / 32 * stride + i % 32, dev::float_to_half(x[size_t(i)]));
      dev::sync_warp();
      uint32_t b[4], a[4];
      dev::load_matrices(b, s_x.from(dev::lane() % 8 * stride + dev::lane() / 8 * 8));
      float c[4] = {0, 0, 0, 0};
      const int r = dev::lane() / 4, t = 2 * (dev::lane() % 4);
      for (int step = 0; step < 2; ++step) {
        for (int part = 0; part < 4; ++part) {
          const float* from = &w[size_t((r + 8 * (part % 2)) * 32 + 16 * step + t + 8 * (part / 2))];
          a[part] = dev::pack_halves<dev::F16>(from[0], from[1]);
        }
        dev::multiply_add<dev::F16>(c, a, b[2 * step], b[2 * step + 1]);
      }
      for (int part = 0; part < 4; ++part) y[size_t((r + 8 * (part / 2)) * 8 + t + part % 2)] = c[part];
    });
    for (int row = 0; row < 16; ++row)
      for (int token = 0; token < 8; ++token) {
        float sum = 0;
        for (int k = 0; k < 32; ++k) sum += w[size_t(row * 32 + k)] * x[size_t(token * 32 + k)];
        ASSERT_EQ(y[size_t(row * 8 + token)], sum) << row << ", " << token;
      }
    const simt::Counts counts = simt::take_counts();
    EXPECT_EQ(counts.multiplies, 2);
    EXPECT_EQ(counts.matrix_loads, 1);
    EXPECT_EQ(counts.matrix_conflicts, padded ? 0 : 4 * 7);
  }
}

TEST(SimtEmulator, BlocksRunInEveryOrderAndCountersReachTheirEnd) {
  std::vector<int> order;
  int arrived = 0;
  for (uint64_t seed = 1; seed < 4; ++seed) {
    simt::set_seed(seed);
    run({.blocks = 3, .blocks_y = 2}, [&] {
      if (dev::thread() == 0) order.push_back(dev::block() + 3 * dev::block_y());
      if (dev::thread() == 0 && dev::atomic_add(&arrived, 1) == 5) arrived = 0;
    });
    EXPECT_EQ(arrived, 0);
  }
  simt::set_seed(1);
  EXPECT_EQ(order.size(), 18u);
  EXPECT_NE(std::vector<int>(order.begin(), order.begin() + 6),
            std::vector<int>(order.begin() + 6, order.begin() + 12));
}

TEST(SimtEmulatorDeathTest, GlobalMemoryEndsAtAWall) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_DEATH(
      {
        auto* values = static_cast<float*>(simt::allocate(32 * sizeof(float)));
        const simt::DeviceAccess access;
        run({.threads = 32}, [&] { values[dev::thread() + 1] = 1; });
      },
      "");
}

struct SetOne {
  static constexpr int kThreads = 32, kBlocks = 1;
  struct Args {
    int where;
    float* values;
  };
  static void run(const Args& args) { args.values[dev::thread()] = 1; }
};

TEST(SimtEmulatorDeathTest, OnlyKernelsAndCopiesReachDeviceMemory) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  cuda::Machine machine;
  auto* const values = static_cast<float*>(machine.allocate(32 * sizeof(float)));
  cuda::launch<SetOne>(machine, {}, {.values = values});
  float here = 0;
  machine.copy_out(&here, values + 31, sizeof here);
  EXPECT_EQ(here, 1);
  EXPECT_DEATH(static_cast<void>(*static_cast<volatile float*>(values)), "");
  EXPECT_DEATH(*static_cast<volatile float*>(values) = 2, "");
  machine.release(values);
}

TEST(SimtEmulator, KernelsDoNotReachHostMemory) {
  cuda::Machine machine;
  std::vector<float> values(32);
  EXPECT_THROW(cuda::launch<SetOne>(machine, {}, {.values = values.data()}), Fault);
  float on_the_stack[32];
  EXPECT_THROW(cuda::launch<SetOne>(machine, {}, {.values = on_the_stack}), Fault);
}

// What a stream does while it is captured.
TEST(SimtEmulator, RecordingsHoldLaunchesAndRefuseWhatNoGraphCanDo) {
  cuda::Machine machine;
  auto* const values = static_cast<float*>(machine.allocate(32 * sizeof(float)));
  machine.clear(values, 32 * sizeof(float));
  const auto value = [&] {
    float here = -1;
    machine.copy_out(&here, values, sizeof here);
    return here;
  };
  const cuda::Recording one = machine.record([&] { cuda::launch<SetOne>(machine, {}, {.values = values}); });
  EXPECT_EQ(value(), 0);
  machine.replay(one);
  EXPECT_EQ(value(), 1);
  const cuda::Recording zero = machine.record([&] { machine.clear(values, sizeof(float)); });
  EXPECT_EQ(value(), 1);
  machine.replay(zero);
  EXPECT_EQ(value(), 0);

  float here = 2;
  EXPECT_THROW(machine.record([&] { machine.allocate(64); }), Fault);
  EXPECT_THROW(machine.record([&] { machine.wait(); }), Fault);
  EXPECT_THROW(machine.record([&] { machine.copy_in(values, &here, sizeof here); }), Fault);
  EXPECT_THROW(machine.record([&] { machine.copy_out(&here, values, sizeof here); }), Fault);
  machine.replay(one);
  EXPECT_EQ(value(), 1) << "and goes on as before";
  EXPECT_THROW(machine.record([&] { machine.release(values); }), Fault);
}

TEST(SimtEmulator, LaunchesBeyondWhatAGpuTakesAreRefused) {
  const auto nothing = [] {};
  EXPECT_THROW(run({.blocks_y = 65536, .threads = 32}, nothing), ContractError);
  EXPECT_THROW(run({.threads = 32, .shared_bytes = (227 << 10) + 1}, nothing), ContractError);
}

}  // namespace
}  // namespace ballast
