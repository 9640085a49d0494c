// y = epilogue(x · Wᵀ) for weights in fragments (fragments.h) and up to 128 tokens: weights are the A operand, 16 rows by 16
// columns, tokens the eight columns of B.
//
// Work partition (stream-K): a block of rows is 128 rows, a tile for each of eight warps, and an item is one stage of 256
// columns of it. The items of all blocks of rows stand in one line, which the grid cuts into pieces of equal length, so every
// multiprocessor moves the same number of bytes, whatever the shape. A block that has part of a block of rows leaves its sums
// in `partials`, and the last one to arrive adds all of them in ascending order of columns: the order depends on the shape and
// the grid alone, not on who is late, and not on the number of tokens.
//
// Weights stream through a ring of stages in shared memory by asynchronous copies; they are read once, so the cache is told
// to keep x instead. Codes are multiplied as they are, and a group's scale s and zero point z come in behind the sum:
//   y += s · (Σ code · x − z · Σx)
#pragma once

#include "kernels/cuda/group_meta.h"
#include "kernels/cuda/linear_args.h"

namespace ballast::cuda {

struct LinearFragmentsArgs {
  const uint32_t* codes;           ///< [tiles][units][32 · bits]
  const char* meta;                ///< [tiles][groups] of Meta
  const uint32_t* outlier_begins;  ///< [outlier_list … + 1], where Meta has outliers
  const uint32_t* outliers;        ///< outlier_word
  const uint32_t*
      salient;  ///< [stages · 128], where Meta has tables: ones in the halves of salient columns, two to a word
  int tiles, units, groups;
  int in_features, group_size;
  int chunk_log2;  ///< of its columns (chunk_columns)
  PreparedInput x;
  float* partials;  ///< [2 · blocks][128 · columns of tokens]
  int* arrived;     ///< [blocks of rows], zeros; left so
  Epilogue epilogue;
};

template <int Bits, class Meta, class Half, int TokenTiles>
struct LinearFragments {
  static constexpr int kWarps = 8, kThreads = kWarps * dev::kWarp;
  static constexpr int kBlocks = TokenTiles <= 2 ? 2 : 1;
  static constexpr int kTokens = 8 * TokenTiles;
  // With more tokens than there are registers for sums of, operands of 128 columns are decoded first, and so many tiles of
  // tokens at a time go through them; then only these have sums beside their totals. That makes 222 registers for 128 tokens,
  // and up to 200 KB of shared memory: an A100 has not enough at 4 and 8 bits. Neither is there for 256 tokens.
  static constexpr bool kWide = TokenTiles > 8;
  static constexpr int kTilesAtOnce = kWide ? 8 : TokenTiles;
  static_assert(TokenTiles % kTilesAtOnce == 0 && !(kWide && Meta::kTables));
  static constexpr int kBlockRows = kWarps * kTileRows;
  static constexpr int kKinds = Bits == 2 && !Meta::kTables ? 3 : 1;
  using Args = LinearFragmentsArgs;

  static constexpr int kUsualChunkLog2 = Meta::kUsualChunk == 128 ? 7 : 4;

  // One stage in shared memory.
  static constexpr int kUnitWords = 32 * Bits;
  static constexpr int kXStride = kStageColumns + 8;  ///< rows of x start in different banks
  static constexpr int kCodeBytes = kWarps * kStageUnits * kUnitWords * 4;
  static constexpr int kXBytes = kTokens * kXStride * 2;
  static BALLAST_BOTH constexpr int stage_bytes(int chunk) {
    const int chunks = kStageColumns / chunk;
    return kCodeBytes + kXBytes + chunks * (kWarps * Meta::kBytes + kKinds * kTokens * 4);
  }
  // As many stages as fit in half of a multiprocessor where two blocks should run, or in 160 KB.
  static constexpr int kRoom = kBlocks == 2 ? 108 << 10 : 160 << 10;
  static constexpr int kFit = kRoom / stage_bytes(Meta::kUsualChunk);
  static constexpr int kRing = kFit > 6 ? 6 : kFit < 2 ? 2 : kFit;
  static int64_t shared_bytes(int chunk) { return int64_t(kRing) * stage_bytes(chunk) + 16; }

  static BALLAST_DEVICE void run(const Args& args) {
    LinearFragments self(args);
    self.run_items();
  }

 private:
  BALLAST_DEVICE explicit LinearFragments(const Args& args)
      : args_(args), chunks_(kStageColumns >> args.chunk_log2), stages_(args.x.stages) {
    items_ = (args.tiles + kWarps - 1) / kWarps * stages_;
    begin_ = item_of(dev::block());
    end_ = item_of(dev::block() + 1);
    dev::SharedArena arena;
    s_ticket_ = arena.take<int>(4);
    s_codes_ = arena.take<uint32_t>(kRing * kCodeBytes / 4);
    s_x_ = arena.take<uint16_t>(kRing * kXBytes / 2);
    s_meta_ = arena.take<uint8_t>(kRing * chunks_ * kWarps * Meta::kBytes);
    s_sums_ = arena.take<float>(kRing * chunks_ * kKinds * kTokens);
  }

  /// The first item of a block of the grid.
  BALLAST_DEVICE int item_of(int block) const { return int(int64_t(block) * items_ / dev::blocks()); }
  /// The block that has an item.
  BALLAST_DEVICE int block_of(int item) const {
    return int((int64_t(item + 1) * dev::blocks() - 1) / items_);
  }

  /// An item and its place, kept up without divisions.
  struct Cursor {
    int item, rows, stage, slot;
  };
  BALLAST_DEVICE Cursor cursor_at(int item) const { return {item, item / stages_, item % stages_, 0}; }
  BALLAST_DEVICE void advance(Cursor& at) const {
    ++at.item;
    if (++at.stage == stages_) at.stage = 0, ++at.rows;
    if (++at.slot == kRing) at.slot = 0;
  }

  BALLAST_DEVICE void run_items() {
    Cursor ahead = cursor_at(begin_);
    for (int i = 0; i < kRing - 1; ++i) begin_stage(ahead), advance(ahead);
    clear();
    for (Cursor at = cursor_at(begin_); at.item < end_; advance(at)) {
      dev::copy_wait<kRing - 2>();
      dev::sync_block();
      // Into the slot that everybody left behind at this barrier.
      begin_stage(ahead), advance(ahead);
      multiply_stage(at);
      if (at.stage + 1 == stages_ || at.item + 1 == end_) {
        finish_rows(at.rows);
        clear();
      }
    }
    dev::copy_wait<0>();
  }

  BALLAST_DEVICE int units_in(int stage) const {
    const int left = args_.units - stage * kStageUnits;
    return left < kStageUnits ? left : kStageUnits;
  }

  // Copies of one item into its slot of the ring; always a group, so that groups and items count alike.
  BALLAST_DEVICE void begin_stage(const Cursor& at) {
    if (at.item < end_) {
      copy_weights(at.rows * kWarps + dev::warp(), at.stage, at.slot);
      copy_input(at.stage, at.slot);
    }
    dev::copy_commit();
  }

  BALLAST_DEVICE void copy_weights(int tile, int stage, int slot) {
    if (tile >= args_.tiles) return;
    const int lane = dev::lane();
    const uint32_t* codes = args_.codes + (int64_t(tile) * args_.units + stage * kStageUnits) * kUnitWords;
    const auto s_codes = s_codes_.from((slot * kWarps + dev::warp()) * kStageUnits * kUnitWords);
    const int lines = units_in(stage) * kUnitWords / 4;
#pragma unroll
    for (int line = lane; line < kStageUnits * kUnitWords / 4; line += dev::kWarp)
      if (line < lines) weights_.copy_async(s_codes.from(4 * line), codes + 4 * line);

    constexpr int kParts = Meta::kBytes / 16;
    const auto s_meta = s_meta_.from((slot * kWarps + dev::warp()) * chunks_ * Meta::kBytes);
    const char* meta = args_.meta + int64_t(tile) * args_.groups * Meta::kBytes;
    for (int i = lane; i < chunks_ * kParts; i += dev::kWarp) {
      const int group = (stage * kStageColumns + (i / kParts << args_.chunk_log2)) / args_.group_size;
      if (group < args_.groups)
        dev::copy_async(s_meta.from(16 * i), meta + int64_t(group) * Meta::kBytes + i % kParts * 16, true);
    }
  }

  BALLAST_DEVICE void copy_input(int stage, int slot) {
    constexpr int kLines = kStageColumns / 8;
    const int64_t width = int64_t(stages_) * kStageColumns;
// Unrolled whole, sixteen addresses would stay in registers.
#pragma unroll kWide ? 2 : 8
    for (int i = dev::thread(); i < kTokens * kLines; i += kThreads) {
      const int token = i / kLines, line = i % kLines;
      dev::copy_async(s_x_.from((slot * kTokens + token) * kXStride + 8 * line),
                      args_.x.halves + token * width + int64_t(stage) * kStageColumns + 8 * line, true);
    }
    const int floats = chunks_ * kKinds * kTokens;
    const float* sums = args_.x.sums + int64_t(stage) * floats;
    for (int i = dev::thread(); i < floats / 4; i += kThreads)
      dev::copy_async(s_sums_.from(slot * floats + 4 * i), sums + 4 * i, true);
  }

  /// Where a lane finds what it multiplies, in the slot of one stage.
  struct Operands {
    dev::Shared<uint32_t> s_codes;
    dev::Shared<uint16_t> s_x;
    dev::Shared<uint8_t> s_meta;
    dev::Shared<float> s_sums;
    int columns;  ///< that are left of the matrix
    int stage;
  };

  BALLAST_DEVICE void multiply_stage(const Cursor& at) {
    if (at.rows * kWarps + dev::warp() >= args_.tiles) return;
    const int lane = dev::lane(), mine = at.slot * kWarps + dev::warp();
    const Operands from{.s_codes = s_codes_.from(mine * kStageUnits * kUnitWords),
                        .s_x = s_x_.from((at.slot * kTokens + lane % 8) * kXStride + lane / 8 * 8),
                        .s_meta = s_meta_.from(mine * chunks_ * Meta::kBytes),
                        .s_sums = s_sums_.from(at.slot * chunks_ * kKinds * kTokens + 2 * (lane % 4)),
                        .columns = args_.in_features - at.stage * kStageColumns,
                        .stage = at.stage};
    const int units = units_in(at.stage);
    if constexpr (kWide) {
      // No path of its own for the usual chunks: two of them take more registers than there are.
#pragma unroll 1
      for (int unit = 0; unit < units; unit += 2) multiply_pair(from, unit, units - unit);
    } else if (units == kStageUnits && args_.chunk_log2 == kUsualChunkLog2) {
      // The whole stage in a line: offsets are constants, and nothing is asked on the way.
#pragma unroll
      for (int unit = 0; unit < kStageUnits; ++unit) multiply_unit<kUsualChunkLog2>(from, unit);
    } else {
#pragma unroll 1
      for (int unit = 0; unit < units; ++unit) multiply_unit<0>(from, unit);
    }
    if constexpr (Meta::kOutliers) add_outliers(at, from);
  }

  /// ChunkLog2: of chunks of that size that fill the stage; 0: of any.
  template <int ChunkLog2>
  BALLAST_DEVICE void multiply_unit(const Operands& from, int unit) {
    uint32_t words[Bits];
    load_words<Bits>(from.s_codes.from(unit * kUnitWords), words);
    multiply_steps<ChunkLog2, 0>(words, from, unit);
    multiply_steps<ChunkLog2, 2>(words, from, unit);
  }

  /// Units `unit` and `unit` + 1, or one of them where no more are left; no chunk goes on behind them. The order of a token's
  /// sums is that of multiply_unit.
  BALLAST_DEVICE void multiply_pair(const Operands& from, int unit, int left) {
    uint32_t a[8][4];
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      if (which == left) break;
      uint32_t words[Bits];
      load_words<Bits>(from.s_codes.from((unit + which) * kUnitWords), words);
      decode_step<Bits, Half, 0>(words, a[4 * which]);
      decode_step<Bits, Half, 1>(words, a[4 * which + 1]);
      decode_step<Bits, Half, 2>(words, a[4 * which + 2]);
      decode_step<Bits, Half, 3>(words, a[4 * which + 3]);
    }
#pragma unroll
    for (int first = 0; first < TokenTiles; first += kTilesAtOnce) {
      const auto s_x = from.s_x.from(unit * kUnitColumns + 8 * first * kXStride);
#pragma unroll
      for (int step = 0; step < 8; step += 2) {
        if (step == 4 && left < 2) break;
        uint32_t b[kTilesAtOnce][4];
#pragma unroll
        for (int n = 0; n < kTilesAtOnce; ++n)
          dev::load_matrices(b[n], s_x.from(8 * n * kXStride + 16 * step));
#pragma unroll
        for (int n = 0; n < kTilesAtOnce; ++n) dev::multiply_add<Half>(sums_[n], a[step], b[n][0], b[n][1]);
        scale_after<0>(from, unit * 4 + step, first);
#pragma unroll
        for (int n = 0; n < kTilesAtOnce; ++n)
          dev::multiply_add<Half>(sums_[n], a[step + 1], b[n][2], b[n][3]);
        scale_after<0>(from, unit * 4 + step + 1, first);
      }
    }
  }

  /// Code 0 under an outlier has put −scale · zero_point into the sum, which is taken back. A lane adds those of its two rows,
  /// in their order.
  BALLAST_DEVICE void add_outliers(const Cursor& at, const Operands& from) {
    const int r = dev::lane() / 4, t = 2 * (dev::lane() % 4);
    const int64_t list = outlier_list(at.rows * kWarps + dev::warp(), stages_, at.stage, r);
    const uint32_t end = args_.outlier_begins[list + 1];
    for (uint32_t i = args_.outlier_begins[list]; i < end; ++i) {
      const uint32_t word = args_.outliers[i];
      const int column = outlier_column(word);
      const bool low = outlier_is_low(word);
      const auto meta = Meta::template row<Bits>(
          from.s_meta.from((column >> args_.chunk_log2) * Meta::kBytes), low ? r : r + 8);
      const float value = dev::fma(meta.scale, meta.zero, dev::half_to_float(uint16_t(word >> 16)));
      const float of_low = low ? value : 0.0f, of_high = low ? 0.0f : value;
#pragma unroll
      for (int n = 0; n < TokenTiles; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const uint16_t half = s_x_.get((at.slot * kTokens + 8 * n + t + e) * kXStride + column);
          const float x = Half::kType == DType::f16 ? dev::half_to_float(half) : dev::bfloat_to_float(half);
          totals_[n][e] = dev::fma(of_low, x, totals_[n][e]);
          totals_[n][2 + e] = dev::fma(of_high, x, totals_[n][2 + e]);
        }
    }
  }

  /// Steps Step and Step + 1 of a unit: one ldmatrix brings both their B operands for eight tokens.
  template <int ChunkLog2, int Step>
  BALLAST_DEVICE void multiply_steps(const uint32_t (&words)[Bits], const Operands& from, int unit) {
    uint32_t a[4], b[TokenTiles][4];
    const auto s_x = from.s_x.from(unit * kUnitColumns + 16 * Step);
#pragma unroll
    for (int n = 0; n < TokenTiles; ++n) dev::load_matrices(b[n], s_x.from(8 * n * kXStride));
    operand<ChunkLog2, Step>(words, from, unit, a);
#pragma unroll
    for (int n = 0; n < TokenTiles; ++n) dev::multiply_add<Half>(sums_[n], a, b[n][0], b[n][1]);
    scale_after<ChunkLog2>(from, unit * 4 + Step);
    operand<ChunkLog2, Step + 1>(words, from, unit, a);
#pragma unroll
    for (int n = 0; n < TokenTiles; ++n) dev::multiply_add<Half>(sums_[n], a, b[n][2], b[n][3]);
    scale_after<ChunkLog2>(from, unit * 4 + Step + 1);
  }

  /// The A operand of one step.
  template <int ChunkLog2, int Step>
  BALLAST_DEVICE void operand(const uint32_t (&words)[Bits], const Operands& from, int unit,
                              uint32_t (&a)[4]) {
    if constexpr (!Meta::kTables) {
      decode_step<Bits, Half, Step>(words, a);
    } else {
      const int r = dev::lane() / 4, t = dev::lane() % 4, step = unit * 4 + Step;
      const int chunk = step * 16 >> (ChunkLog2 ? ChunkLog2 : args_.chunk_log2);
      const auto s_tables = from.s_meta.from(chunk * Meta::kBytes).template as<dev::Words4>();
      const dev::Words4 low = s_tables.get(r), high = s_tables.get(r + 8);
      const uint32_t* salient = args_.salient + (from.stage * kStageColumns + step * 16) / 2 + t;
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        const Place place = place_of(2, 4 * Step + part);
        const dev::Words4& table = part % 2 == 0 ? low : high;
        const uint32_t ordinary = look_up_pair(words[place.word], place.shift, table.x, table.y);
        const uint32_t other = look_up_pair(words[place.word], place.shift, table.z, table.w);
        a[part] = dev::select_bits(salient[part / 2 * 4], other, ordinary);
      }
    }
  }

  /// At the end of a chunk, brings its sums to scale and adds them to the totals, those of the tiles of tokens from `first` on.
  /// Padding has no scale and sums of 0.
  template <int ChunkLog2>
  BALLAST_DEVICE void scale_after(const Operands& from, int step, int first = 0) {
    const int chunk_log2 = ChunkLog2 ? ChunkLog2 : args_.chunk_log2;
    if ((step + 1) * 16 & ((1 << chunk_log2) - 1)) return;
    if (ChunkLog2 == 0 && step * 16 >= from.columns) return;
    if constexpr (!Meta::kTables) scale_chunk(from, step * 16 >> chunk_log2, first);
  }

  BALLAST_DEVICE void scale_chunk(const Operands& from, int chunk, int first) {
    const int r = dev::lane() / 4;
    const auto s_meta = from.s_meta.from(chunk * Meta::kBytes);
    const auto low = Meta::template row<Bits>(s_meta, r), high = Meta::template row<Bits>(s_meta, r + 8);
    const auto s_sums = from.s_sums.from(chunk * kKinds * kTokens + 8 * first);
#pragma unroll
    for (int n = 0; n < kTilesAtOnce; ++n) {
      const dev::Floats2 x = s_sums.from(8 * n).template as<dev::Floats2>().get(0);
      if constexpr (Bits == 2) {
        const dev::Floats2 of_low = s_sums.from(kTokens + 8 * n).template as<dev::Floats2>().get(0);
        const dev::Floats2 of_high = s_sums.from(2 * kTokens + 8 * n).template as<dev::Floats2>().get(0);
        sums_[n][0] -= of_low.x, sums_[n][1] -= of_low.y;
        sums_[n][2] -= of_high.x, sums_[n][3] -= of_high.y;
      }
      totals_[first + n][0] =
          dev::fma(low.scale, dev::fma(-low.zero, x.x, sums_[n][0]), totals_[first + n][0]);
      totals_[first + n][1] =
          dev::fma(low.scale, dev::fma(-low.zero, x.y, sums_[n][1]), totals_[first + n][1]);
      totals_[first + n][2] =
          dev::fma(high.scale, dev::fma(-high.zero, x.x, sums_[n][2]), totals_[first + n][2]);
      totals_[first + n][3] =
          dev::fma(high.scale, dev::fma(-high.zero, x.y, sums_[n][3]), totals_[first + n][3]);
#pragma unroll
      for (int i = 0; i < 4; ++i) sums_[n][i] = 0;
    }
  }

  BALLAST_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int n = 0; n < kTilesAtOnce; ++n) sums_[n][i] = 0;
#pragma unroll
      for (int n = 0; n < TokenTiles; ++n) totals_[n][i] = 0;
    }
  }

  /// Where a thread's totals of a piece lie; a block begins at most one block of rows in its middle and leaves at most one
  /// unfinished at its end.
  BALLAST_DEVICE float* partial(int block, bool from_middle, int n, int i) const {
    return args_.partials +
           ((int64_t(2 * block + (from_middle ? 0 : 1)) * TokenTiles + n) * 4 + i) * kThreads + dev::thread();
  }

  BALLAST_DEVICE void finish_rows(int rows) {
    if constexpr (Meta::kTables) {  // sums of values, already to scale
#pragma unroll
      for (int n = 0; n < TokenTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) totals_[n][i] = sums_[n][i];
    }
    const int first_item = rows * stages_;
    const int first = block_of(first_item), last = block_of(first_item + stages_ - 1);
    if (first != last || kWide) {
      const int block = dev::block();
#pragma unroll
      for (int n = 0; n < TokenTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) *partial(block, begin_ > first_item, n, i) = totals_[n][i];
    }
    if (first != last) {
      dev::fence();
      dev::sync_block();
      if (dev::thread() == 0) s_ticket_.set(0, dev::atomic_add(args_.arrived + rows, 1));
      dev::sync_block();
      if (s_ticket_.get(0) != last - first) return;
      if (dev::thread() == 0) args_.arrived[rows] = 0;
      dev::fence();
    }
    const int r = (rows * kWarps + dev::warp()) * kTileRows + dev::lane() / 4, t = 2 * (dev::lane() % 4);
    if constexpr (kWide) {
      // Out of memory, also what this block has alone: all totals and where they go would be too many registers.
#pragma unroll 1
      for (int n = 0; n < TokenTiles; ++n) {
        float sums[4];
        join(sums, n, first, last, first_item);
#pragma unroll
        for (int i = 0; i < 4; ++i) finish_output(args_.epilogue, 8 * n + t + i % 2, r + i / 2 * 8, sums[i]);
      }
    } else {
#pragma unroll
      for (int n = 0; n < TokenTiles; ++n) {
        if (first != last) join(totals_[n], n, first, last, first_item);
#pragma unroll
        for (int i = 0; i < 4; ++i)
          finish_output(args_.epilogue, 8 * n + t + i % 2, r + i / 2 * 8, totals_[n][i]);
      }
    }
  }
  /// The sum of what blocks left.
  BALLAST_DEVICE void join(float (&sums)[4], int n, int first, int last, int first_item) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] = 0;
    for (int other = first; other <= last; ++other)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        sums[i] += dev::load_shared_by_blocks(partial(other, item_of(other) > first_item, n, i));
  }

  const Args& args_;
  dev::ReadOnce weights_;
  int chunks_, stages_;
  int begin_, end_, items_;
  dev::Shared<int> s_ticket_;
  dev::Shared<uint32_t> s_codes_;
  dev::Shared<uint16_t> s_x_;
  dev::Shared<uint8_t> s_meta_;
  dev::Shared<float> s_sums_;
  float sums_[kTilesAtOnce][4], totals_[TokenTiles][4];
};

}  // namespace ballast::cuda
