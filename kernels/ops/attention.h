// Multi-head attention over a paged key/value cache.
//
//   cache[page(j)] <- k[j], v[j]                             for the new rows j of every span
//   out[t] = Σ_j softmax_j(scale · q[t]·k[j]) v[j]           j over the span's past and, if causal, up to t
//
// Softmax and sums are f32; j ascends in blocks of kPagePositions that start at absolute positions, so the
// result does not depend on how a sequence was cut into chunks or what else is in the batch.
//
// Without a cache the spans are whole sequences and nothing is kept: images, whose tokens all see each other.
#pragma once

#include <optional>
#include <span>

#include "kernels/encodings/activation.h"
#include "kernels/view.h"

namespace ballast {

enum class Mask : uint8_t { causal, full };

/// Positions in one cache page. Keys are stored with positions innermost, so that a page's scores are one
/// vector.
inline constexpr int64_t kPagePositions = 16;

/// Elements of what a cache page holds of one head's keys, or of its values; one page has both, of all heads.
///   f32  keys [head_dim][16]; values [16][head_dim]
///   u8   the same as signed bytes, then 16 f32, a scale for each position: x ≈ scale · code with scale =
///        max|x| / 127 over the head and code = x / scale rounded to nearest, ties to even. A vector that is nowhere
///        larger than 2^-100 is stored as zeros, one with an infinity or a NaN as NaN.
constexpr int64_t cache_page_elements(DType type, int64_t head_dim) {
  return kPagePositions * (type == DType::f32 ? head_dim : head_dim + int64_t(sizeof(float)));
}

/// Consecutive rows of the batch that belong to one sequence.
struct AttentionSpan {
  int32_t first_row = 0;
  int32_t rows = 0;                ///< > 0
  int32_t past = 0;                ///< positions already in the cache
  const int32_t* pages = nullptr;  ///< page numbers for positions [0, past + rows), 16 positions each
};

struct Attention {
  TensorView q;      ///< f32 [tokens, width], width = heads · head_dim
  TensorView k;      ///< f32 [tokens, width]
  TensorView v;      ///< f32 [tokens, width]
  OutputView cache;  ///< f32 or u8 [pages, 2, heads, cache_page_elements], keys and then values; or empty
  std::span<const AttentionSpan> spans;
  int64_t heads = 0;
  float scale = 1;  ///< OPT: head_dim^-1/2, applied to q before the product
  Mask mask = Mask::causal;
  std::optional<ActivationGrid> probability_grid;  ///< softmax is rounded to it; without a cache only
  OutputView out;                                  ///< f32 [tokens, width]

  void check() const {
    DimChecker dims("attention");
    dims.match(q, "q", {"tokens", "width"});
    dims.match(k, "k", {"tokens", "width"});
    dims.match(v, "v", {"tokens", "width"});
    dims.match(out, "out", {"tokens", "width"});
    for (const TensorView* view : {&q, &k, &v}) dims.dtype(*view, "q, k, v", {DType::f32});
    CHECK(heads > 0 && dims["width"] % heads == 0, "attention: ", heads, " heads do not divide ",
          dims["width"]);
    dims.bind("heads", heads, "heads");
    if (cache) {
      dims.bind("pair", 2, "key and value");
      dims.dtype(cache, "cache", {DType::f32, DType::u8});
      dims.bind("page", cache_page_elements(cache.dtype, dims["width"] / heads), "head_dim");
      dims.match(cache, "cache", {"pages", "pair", "heads", "page"});
    }
    CHECK(!cache || !probability_grid, "attention: a grid for probabilities, and a cache");
    int64_t covered = 0;
    for (const AttentionSpan& span : spans) {
      CHECK(span.rows > 0 && span.past >= 0 && span.first_row == covered,
            "attention: spans must tile the rows");
      CHECK(cache || span.past == 0, "attention: a past, but no cache");
      covered += span.rows;
    }
    CHECK(covered == dims["tokens"], "attention: spans cover ", covered, " of ", dims["tokens"], " rows");
  }
};

/// Gradients of Attention's inputs for whole sequences (no past), probabilities p computed anew:
///   dv[j] += Σ_t p[t][j] · d_out[t]
///   ds[t][j] = p[t][j] · (d_out[t]·v[j] − Σ_i p[t][i] · d_out[t]·v[i])
///   dq[t] += scale · Σ_j ds[t][j] · k[j],   dk[j] += scale · Σ_t ds[t][j] · q[t]
struct AttentionBackward {
  TensorView q, k, v;     ///< f32 [tokens, width], width = heads · head_dim
  TensorView d_out;       ///< f32 [tokens, width]
  OutputView dq, dk, dv;  ///< f32 [tokens, width]
  std::span<const AttentionSpan> spans;
  int64_t heads = 0;
  float scale = 1;
  Mask mask = Mask::causal;

  void check() const {
    DimChecker dims("attention_backward");
    for (const TensorView* view :
         {&q, &k, &v, &d_out, static_cast<const TensorView*>(&dq), static_cast<const TensorView*>(&dk),
          static_cast<const TensorView*>(&dv)}) {
      dims.match(*view, "q, k, v, d_out, dq, dk, dv", {"tokens", "width"});
      dims.dtype(*view, "q, k, v, d_out, dq, dk, dv", {DType::f32});
    }
    CHECK(heads > 0 && dims["width"] % heads == 0, "attention_backward: ", heads, " heads do not divide ",
          dims["width"]);
    int64_t covered = 0;
    for (const AttentionSpan& span : spans) {
      CHECK(span.rows > 0 && span.past == 0 && span.first_row == covered,
            "attention_backward: spans must be whole sequences that tile the rows");
      covered += span.rows;
    }
    CHECK(covered == dims["tokens"], "attention_backward: spans cover ", covered, " of ", dims["tokens"],
          " rows");
  }
};

}  // namespace ballast
