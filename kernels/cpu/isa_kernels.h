// All kernels of one instruction set (see simd.h) as a table. Included only by the isa_*.cpp files.
#pragma once

#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/factorize_kernels.h"
#include "kernels/cpu/fixed_kernels.h"
#include "kernels/cpu/gradient_kernels.h"
#include "kernels/cpu/half_rows_kernels.h"
#include "kernels/cpu/layernorm_kernels.h"
#include "kernels/cpu/plane_binary.h"
#include "kernels/cpu/plane_columns.h"
#include "kernels/cpu/plane_kernels.h"
#include "kernels/cpu/plane_split.h"
#include "kernels/cpu/round_columns_kernels.h"

namespace ballast::BALLAST_ISA {

static KernelTable all_kernels(const char* name) {
  return {.name = name,
          .token_block = kTokenBlock,
          .linear = linear,
          .plane_columns = kPlaneColumns,
          .split = split,
          .linear_planes = linear_planes,
          .linear_columns = linear_columns,
          .split_binary = split_binary,
          .linear_binary = linear_binary,
          .words_of_bytes = !kBytesOfAllCodes,
          .round_row = round_row,
          .encode = encode,
          .linear_fixed = linear_fixed,
          .decode_row = decode_row,
          .layernorm = layernorm,
          .append = append,
          .attend = attend,
          .attend_part = attend_part,
          .join_parts = join_parts,
          .float_strip = kStrip<float>,
          .double_strip = kStrip<double>,
          .update_f32 = update_f32,
          .update_f64 = update_f64,
          .factor_square = factor_square,
          .invert_square = invert_square,
          .round_columns = round_columns,
          .store_half_row = store_half_row,
          .load_half_row = load_half_row,
          .softmax = softmax,
          .softmax_backward = softmax_backward,
          .layernorm_backward = layernorm_backward};
}

}  // namespace ballast::BALLAST_ISA
