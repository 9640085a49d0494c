// The inner loops of the CPU backend, one table per instruction set. Plain pointers only: the bodies are
// compiled with flags that other code must not inherit (see simd.h).
#pragma once

#include <cstdint>

namespace ballast {

inline constexpr int64_t kTileRows = 16;  ///< output features that one vector of lanes holds

/// Tokens handled between two writes of y, and k handled between two spills of the accumulators.
inline constexpr int64_t kTokenChunk = 192;
inline constexpr int64_t kKBlock = 128;
inline constexpr int kMaxTilesAtOnce = 4;

enum class TileKind : uint8_t {
  f32,
  f16,
  bf16,
  affine2,
  affine3,
  affine4,
  affine8,
  outliers2,
  outliers3,
  outliers4,
  outliers8,
  residual_binary
};

/// 0 for other kinds.
static constexpr int affine_bits(TileKind kind) {
  return kind == TileKind::affine2   ? 2
         : kind == TileKind::affine3 ? 3
         : kind == TileKind::affine4 ? 4
         : kind == TileKind::affine8 ? 8
                                     : 0;
}

/// 16-bit numbers that every row has per block of residual binary weights.
inline constexpr int64_t kBinaryCoefficients = 7;
/// Their codes in a word.
inline constexpr int64_t kCodesOfWord = 16;

/// A packed weight: tiles of 16 output rows, k ascending inside a tile.
///   f32, f16, bf16   [k][16 rows]
///   affine           per group: [16 f16 scales], [16 u8 zeros, with half_zeros twice as much], padding, the codes of its
///                    chunks (plane_layout.h)
///                    or, where a column of zeros shall not be read, by columns (plane_layout.h): column_units > 0
///   outliers         per group: [2·stat_bits bytes: 16 scale codes, row 0 in the lowest bits], [16 zero codes],
///                    [4 f16: scale_low, scale_step, zero_low, zero_step], the codes of its chunks, 0 under an
///                    outlier; outliers lie behind all tiles
///   residual_binary  per block: [7][16 f16 coefficients], [k / 16][16 rows] words of 16 codes, the first in the
///                    highest two bits; the last block may be shorter
///                    or, beside int8 activations, as binary_layout.h has it: binary_order not null
/// Codes and numbers of a row are 0 for rows beyond out_features.
struct TiledWeight {
  const uint8_t* data;
  int64_t tile_bytes;
  int64_t in_features;
  int64_t group_size;  ///< of affine and outliers; block size of residual binary
  TileKind kind;
  int64_t column_units = 0;  ///< of affine codes by columns
  bool half_zeros = false;   ///< of affine codes
  int stat_bits = 0;         ///< width of scale and zero codes: 2, 3, 4 or 8
  /// Outliers of k-block b of tile t: [outlier_begin[i], outlier_begin[i + 1]), i = t · k-blocks + b. Each is
  /// its place in the decoded block, k·16 + row, in the low half, ascending, and a binary16 value in the high half.
  const uint32_t* outlier_begin = nullptr;
  const uint32_t* outliers = nullptr;
  const uint8_t* salient = nullptr;       ///< residual binary: one bit a column
  const uint8_t* binary_order = nullptr;  ///< of residual binary codes for integer kernels
};

/// Activations as integers, one power of two (or, with one plane, one scale) for each token and chunk of columns
/// (plane_layout.h): x[token][k] ≈ step · Σ_p base^p · digit_p[token][k] with `planes` digits, whose largest error
/// is max|x| of the chunk · 2^-23 · 1.01 with several planes, and max|x| / 254 with one.
///   digits    [chunk][block of tokens][step][token in block][plane], each word holding the digits of the columns
///             of one step; blocks of KernelTable::plane_columns / planes tokens, the last as wide as what is left
///   steps     [chunk][tokens]
///   sums      [chunk][tokens][planes], each −Σ_k digit
///   special   [tokens]: 1 where x holds an infinity or a NaN; such a token's digits are 0 and its y is not written
struct PlaneBlocks {
  int planes = 0;
  int32_t* digits = nullptr;
  float* steps = nullptr;
  int32_t* sums = nullptr;
  uint8_t* special = nullptr;
  const float* x = nullptr;  ///< what was split, rows x_stride apart
  int64_t x_stride = 0;
};
/// Fills PlaneBlocks from x [tokens][in_features], rows token_stride apart, for a weight of `bits` in groups.
struct SplitTask {
  const float* x;
  int64_t tokens, token_stride, in_features;
  int bits;
  int64_t group_size;
  PlaneBlocks out;
  const uint8_t* binary_order = nullptr;  ///< split_binary
};

/// One row of values rounded to a grid (encodings/activation.h).
struct RoundTask {
  const float* x;
  int64_t count;
  float* y;
  int kind;                                         ///< ActivationGrid::Kind
  float step, inverse;                              ///< s, 1/s
  float coarse_step, coarse_inverse, coarse_units;  ///< twin: s·2^m, its inverse, 2^m
  float low, high;  ///< bounds of round(x/s); of twin grids: that of the fine, then that of the coarse range
  float offset;     ///< IntegerCodes::offset
  int32_t last_code, per_octave;
};
/// Fills digits [group][block of KernelTable::plane_columns tokens][step][token in block], sums [group][tokens]
/// (−Σ digits) and special of `out` with a row's codes as integers.
struct EncodeTask {
  const float* x;
  int64_t tokens, token_stride, in_features, group_size;
  int64_t group_steps;  ///< steps of a group; one has four columns, with `words` two
  bool words;
  RoundTask round;
  PlaneBlocks out;
};

/// How far ahead of what they multiply kernels ask for codes.
inline constexpr int64_t kPrefetchBytes = 3072;

/// Activations repacked as blocks of `token_block` tokens, [block][k][token in block]; the last block is as
/// wide as what is left. Used for y[token][row] = Σ_k x[token][k] · W[row][k].
struct LinearTask {
  const float* x_blocks;
  int64_t tokens;
  TiledWeight weight;
  int64_t out_features;
  const float* bias;           ///< may be null
  const float* position_bias;  ///< may be null; row stride out_features
  int64_t position_rows;
  const int32_t* positions;
  const float* residual;  ///< may be null
  int64_t residual_stride;
  float* y;
  int64_t y_stride;
  uint8_t activation;      ///< Activation
  float* scratch;          ///< linear_scratch_floats(), one per calling thread
  PlaneBlocks planes;      ///< instead of x_blocks, for linear_planes and linear_fixed
  int64_t prefetch_bytes;  ///< in place of kPrefetchBytes for one token and 4 bits; 0: no hints
  float input_step;        ///< linear_fixed: x̂ = input_step · (digit + input_offset)
  int32_t input_offset;
  bool input_words;
};

struct AttentionTask {
  const float *q, *k, *v;
  int64_t q_stride, k_stride, v_stride;
  uint8_t* cache;  ///< pages as ops/attention.h has them
  bool coded;      ///< of signed bytes with scales
  int64_t heads, head_dim;
  const int32_t* pages;
  int64_t past, rows;  ///< of this span
  float scale;
  bool causal;
  float* out;
  int64_t out_stride;
  float* scratch;  ///< attention_scratch_floats(head_dim)
};

/// out[i][j] −= Σ_r a[i][r] · b[r][j], i < rows, j < columns: one chain of fused multiply-adds per element, r
/// ascending.
template <class T>
struct UpdateTask {
  const T* a;  ///< [rows][rank], rows a_stride apart
  int64_t a_stride;
  const T* b;  ///< [columns / strip][rank][strip], missing columns zero; strip: KernelTable::…_strip
  int64_t rank, rows, columns;
  bool add;          ///< += instead
  bool fresh;        ///< out counts as 0; then out may be a, where rank is at most kTermBlock
  int64_t diagonal;  ///< a[i][r] counts as 0 for r < i + diagonal
  T* out;
  int64_t out_stride;
  T* scratch;  ///< kUpdateScratch
};

/// Columns of a RoundColumns that share the loads of earlier errors.
inline constexpr int64_t kColumnGroup = 4;

/// Up to kTileRows rows of one RoundColumns; pointers are at their first row.
struct ColumnTask {
  float* w;
  int64_t w_stride, rows, width;
  const float* u;  ///< [width / kColumnGroup][width][kColumnGroup], missing columns anything
  const float *scales, *zeros;
  int64_t group_stride;
  const int32_t* groups;
  uint8_t* codes;
  int64_t code_stride;
  float max_code;
  float* scratch;  ///< 2 · width · kTileRows
};

/// One row of LayerNormBackward.
struct LayerNormBackwardTask {
  const float* x;
  const float* weight;  ///< may be null
  float epsilon;
  int64_t hidden;
  const float* dy;
  bool accumulate;
  float* dx;
};

struct KernelTable {
  const char* name;
  int64_t token_block;
  /// Tiles [first, last) of one linear.
  void (*linear)(const LinearTask& task, int64_t first_tile, int64_t last_tile);
  int64_t plane_columns;  ///< tokens · planes in a block of PlaneBlocks
  /// Blocks [first, last) of tokens.
  void (*split)(const SplitTask& task, int64_t first_block, int64_t last_block);
  /// Tiles [first, last) of one linear with affine codes: integer sums of codes and digits.
  void (*linear_planes)(const LinearTask& task, int64_t first_tile, int64_t last_tile);
  /// The same of codes by columns, units [first, last) of kColumnUnit rows.
  void (*linear_columns)(const LinearTask& task, int64_t first_unit, int64_t last_unit);
  /// The two for residual binary codes beside int8 activations (plane_binary.h).
  void (*split_binary)(const SplitTask& task, int64_t first_block, int64_t last_block);
  void (*linear_binary)(const LinearTask& task, int64_t first_tile, int64_t last_tile);
  bool words_of_bytes;  ///< linear_fixed takes words beside codes of 8 bits even where digits are bytes
  void (*round_row)(const RoundTask& task);
  /// Blocks [first, last) of tokens.
  void (*encode)(const EncodeTask& task, int64_t first_block, int64_t last_block);
  /// Tiles [first, last) of one linear with affine codes behind an input with a fixed grid.
  void (*linear_fixed)(const LinearTask& task, int64_t first_tile, int64_t last_tile);
  /// out[0 … in_features) (+)= row of a packed weight.
  void (*decode_row)(const TiledWeight& weight, int64_t row, bool accumulate, float* out);
  void (*layernorm)(const float* x, const float* weight, const float* bias, float epsilon, int64_t hidden,
                    float* y);
  /// Copies rows [0, task.rows) of k and v of one head into the cache pages.
  void (*append)(const AttentionTask& task, int64_t head);
  /// Attends query rows [first, last) of one head, at most kRowsPerUnit.
  void (*attend)(const AttentionTask& task, int64_t head, int64_t first, int64_t last);
  /// One block of positions for one row: largest score, sum of exponentials, sum of values, as join_parts reads them.
  void (*attend_part)(const AttentionTask& task, int64_t head, int64_t row, int64_t block, float* part);
  /// A row from the parts of its `count` blocks, attention_part_floats apart; changes the first one.
  void (*join_parts)(const AttentionTask& task, int64_t head, int64_t row, int64_t count, float* parts);
  int64_t float_strip, double_strip;  ///< columns of UpdateTask::b that lie side by side
  void (*update_f32)(const UpdateTask<float>& task);
  void (*update_f64)(const UpdateTask<double>& task);
  /// Squares are [kSquare][kSquare], of which `size` rows and columns are used. H = R·Rᵀ in place, R upper
  /// triangular, what is below the diagonal is scratch; false when H is not positive definite or not finite.
  bool (*factor_square)(double* h, int64_t size);
  /// inverse = R⁻¹, zeros below the diagonal; reads R's upper triangle.
  void (*invert_square)(const double* r, int64_t size, double* inverse);
  void (*round_columns)(const ColumnTask& task);
  /// One row of ops/half_rows.h; returns its scale.
  float (*store_half_row)(const float* x, int64_t width, uint16_t* halves);
  void (*load_half_row)(const uint16_t* halves, float scale, int64_t width, float* x);
  /// In place, row[i] -> exp(row[i] − max); returns 1 / Σ. The row reaches to a whole number of vectors, whose
  /// lanes beyond count become 0.
  float (*softmax)(float* row, int64_t count);
  void (*softmax_backward)(float* scores, int64_t count, float scale, float* d);
  void (*layernorm_backward)(const LayerNormBackwardTask& task);
};

/// Terms of an update's sums between two stores of the result: a strip of b and the terms of a few rows of a fit
/// L1 together.
template <class T>
inline constexpr int64_t kTermBlock = 1024 / int64_t(sizeof(T));
/// Rows of a whose terms are gathered in L2 to share the loads of b.
inline constexpr int64_t kUpdateRows = 96;
template <class T>
inline constexpr int64_t kUpdateScratch = kUpdateRows* kTermBlock<T>;
/// Columns that the factorization finishes together.
inline constexpr int64_t kSquare = 128;

constexpr int64_t linear_scratch_floats() {
  return kMaxTilesAtOnce * kKBlock * kTileRows + kMaxTilesAtOnce * kTokenChunk * kTileRows;
}
/// Positions whose softmax and sums of values are made by themselves, then joined with those before them: part of what
/// decides the bits of a result.
inline constexpr int64_t kAttentionBlock = 128;
/// Rows of one head that one unit of work attends: a multiple of kMostQueries, so many that keys and values are used
/// often while they are in the first caches.
inline constexpr int64_t kRowsPerUnit = 24;
/// The most queries that share the loads of keys and values.
inline constexpr int64_t kMostQueries = 12;
constexpr int64_t attention_scratch_floats(int64_t head_dim) {
  return 2 * kRowsPerUnit * head_dim + kMostQueries * (kAttentionBlock + head_dim);
}
constexpr int64_t attention_part_floats(int64_t head_dim) {
  return head_dim + 2;
}

const KernelTable& scalar_kernels();
#if defined(__x86_64__)
const KernelTable& avx2_kernels();
const KernelTable& avx512_kernels();
#endif

}  // namespace ballast
