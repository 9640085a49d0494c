// Spans of a batch in the form that attention kernels read: flat tables of numbers, copied to the device once a step.
#pragma once

#include <cstdint>

namespace ballast::cuda {

/// Where a new row's key and value go.
struct CachePlace {
  int32_t page, offset;
};

/// One query row and the positions it sees.
struct QueryRow {
  int32_t row;      ///< of the batch
  int32_t visible;  ///< positions, counted from 0
  int32_t pages;    ///< index of the sequence's first page number, where there is a cache
  int32_t first;    ///< row of position 0, where there is none
};

/// Up to kQueryTile rows of one span, or as many as the kernel says that takes them.
struct QueryTile {
  int32_t row, rows;  ///< of the batch
  int32_t position;   ///< of the first row
  int32_t length;     ///< positions of the sequence, these rows and later ones included
  int32_t pages, first;
};
inline constexpr int kQueryTile = 64;

/// Positions of a page.
inline constexpr int kCachePage = 16;

/// Keys and values by position: pages of 16 positions (cache_page_elements in ops/attention.h), or rows of the batch.
struct KeySource {
  const void* cache;  ///< [pages][2][heads][…], or nullptr
  bool coded;         ///< the cache holds signed bytes and scales
  const int32_t* pages;
  const float* k;
  const float* v;
  int64_t k_stride, v_stride;
  int heads, head_dim;
};

}  // namespace ballast::cuda
