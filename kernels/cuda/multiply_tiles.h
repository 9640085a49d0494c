// Dense products in f32 or f64, for quantizing: second moments, rank updates, factorizations.
#pragma once

#include "kernels/cuda/launch.h"

namespace ballast::cuda {

/// out (+)= ± A · B with A [rows, inner], B [inner, columns], each with either dimension innermost in memory.
///
/// Work partition: a block of 256 threads owns 64 × 64 results, a thread 4 × 4 of them; 16 terms at a time pass through shared
/// memory. Every result is one chain of fused steps in ascending order of terms (of each `terms_at_once`, which are then added
/// as Sum), so it depends on nothing but its operands; and it is written when all of its block's operands have been read.
template <class T, class Sum, bool AInnerFirst, bool BInnerFirst>
struct MultiplyTiles {
  static constexpr int kThreads = 256, kBlocks = 2;
  static constexpr int kSide = 64, kTerms = 16, kPitch = kSide + 4, kMine = 4;
  struct Args {
    const T* a;
    const T* b;
    Sum* out;
    int64_t a_stride, b_stride, out_stride;
    int rows, columns, inner, terms_at_once;
    int sign;            ///< 1 or -1
    bool add;            ///< to what is there
    bool upper_a;        ///< A is 0 below its diagonal, whatever lies there
    int64_t lowest = 0;  ///< only results at row - column <= lowest are written
  };
  static constexpr int64_t kSharedBytes = 2 * kTerms * kPitch * int64_t(sizeof(T));

  static BALLAST_DEVICE void run(const Args& args) {
    dev::SharedArena arena;
    const auto s_a = arena.take<T>(kTerms * kPitch), s_b = arena.take<T>(kTerms * kPitch);
    const int first_row = dev::block() * kSide, first_column = dev::block_y() * kSide;
    const int my_row = dev::thread() / (kSide / kMine) * kMine,
              my_column = dev::thread() % (kSide / kMine) * kMine;
    Sum totals[kMine][kMine] = {};
    T sums[kMine][kMine] = {};
    int left = args.terms_at_once;
    for (int term = args.upper_a ? first_row : 0; term < args.inner; term += kTerms) {
      fill<AInnerFirst>(s_a, args.a, args.a_stride, first_row, args.rows, term, args.inner, args.upper_a);
      fill<BInnerFirst>(s_b, args.b, args.b_stride, first_column, args.columns, term, args.inner, false);
      dev::sync_block();
#pragma unroll
      for (int k = 0; k < kTerms; ++k) {
        T row[kMine], column[kMine];
#pragma unroll
        for (int i = 0; i < kMine; ++i) {
          row[i] = s_a.get(k * kPitch + my_row + i);
          column[i] = s_b.get(k * kPitch + my_column + i);
        }
#pragma unroll
        for (int i = 0; i < kMine; ++i)
#pragma unroll
          for (int j = 0; j < kMine; ++j) sums[i][j] = dev::fma(row[i], column[j], sums[i][j]);
      }
      dev::sync_block();
      left -= kTerms;
      if (left > 0 && term + kTerms < args.inner) continue;
      left = args.terms_at_once;
#pragma unroll
      for (int i = 0; i < kMine; ++i)
#pragma unroll
        for (int j = 0; j < kMine; ++j) {
          totals[i][j] += Sum(sums[i][j]);
          sums[i][j] = 0;
        }
    }
    for (int i = 0; i < kMine; ++i)
      for (int j = 0; j < kMine; ++j) {
        const int row = first_row + my_row + i, column = first_column + my_column + j;
        if (row >= args.rows || column >= args.columns || row - column > args.lowest) continue;
        Sum& out = args.out[row * args.out_stride + column];
        const Sum value = args.sign < 0 ? -totals[i][j] : totals[i][j];
        out = args.add ? out + value : value;
      }
  }

 private:
  // s_out[term][line] of kSide lines of an operand, zeros beyond its end.
  template <bool InnerFirst>
  static BALLAST_DEVICE void fill(dev::Shared<T> s_out, const T* from, int64_t stride, int first, int lines,
                                  int term, int inner, bool upper) {
    for (int i = dev::thread(); i < kSide * kTerms; i += kThreads) {
      const int k = InnerFirst ? i % kTerms : i / kSide, line = InnerFirst ? i / kTerms : i % kSide;
      const int64_t at_line = first + line, at_term = term + k;
      const bool there = at_line < lines && at_term < inner && !(upper && at_term < at_line);
      s_out.set(k * kPitch + line,
                there ? from[InnerFirst ? at_line * stride + at_term : at_term * stride + at_line] : T(0));
    }
  }
};

template <class Kernel>
void multiply_tiles(Machine& machine, typename Kernel::Args args) {
  if (args.rows == 0 || args.columns == 0) return;
  constexpr int64_t kSide = Kernel::kSide;
  launch<Kernel>(machine,
                 {.blocks = (args.rows + kSide - 1) / kSide,
                  .blocks_y = (args.columns + kSide - 1) / kSide,
                  .shared_bytes = Kernel::kSharedBytes},
                 args);
}

}  // namespace ballast::cuda
