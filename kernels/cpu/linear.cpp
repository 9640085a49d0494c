#include "kernels/ops/linear.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/binary_layout.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/round_activations.h"
#include "kernels/cpu/tiles.h"

namespace ballast {
namespace {

// Below this many multiply-adds a second thread costs more than it saves.
constexpr int64_t kSerialWork = 1 << 15;

}  // namespace

void CpuBackend::pack_blocks(const float* x, int64_t tokens, int64_t features, int64_t token_stride,
                             int64_t k_stride, float sign, float* x_blocks) {
  const TokenBlocks task{x, tokens, features, token_stride, k_stride, sign, kernels_.token_block};
  const auto pack = [&](int, int64_t first, int64_t last) { fill_blocks(task, first, last, x_blocks); };
  const int64_t blocks = task.count();
  if (tokens * features < kSerialWork) {
    pack(0, 0, blocks);
  } else {
    pool_.parallel(blocks, pack);
  }
}

template <class Encoding>
LinearTask CpuBackend::linear_task(const Linear<Encoding>& op) {
  op.check();
  CHECK(!op.position_bias || op.position_bias.contiguous(),
        "linear: position_bias has gaps between its rows");
  LinearTask task{};
  task.tokens = op.x.shape[0];
  task.weight = tiles_of(op.weight);
  task.out_features = op.weight.out_features;
  task.bias = op.bias.template as<float>();
  task.position_bias = op.position_bias.template as<float>();
  task.position_rows = op.position_bias ? op.position_bias.shape[0] : 0;
  task.positions = op.positions.template as<int32_t>();
  task.residual = op.residual.template as<float>();
  task.residual_stride = op.residual ? op.residual.strides[0] : 0;
  task.y = op.y.template as<float>();
  task.y_stride = op.y.strides[0];
  task.activation = uint8_t(op.activation);
  task.prefetch_bytes = prefetch_bytes_;
  return task;
}

void CpuBackend::run_parts(const LinearTask& task, int64_t parts,
                           void (*kernel)(const LinearTask&, int64_t, int64_t)) {
  const auto run = [&](int thread, int64_t first, int64_t last) {
    LinearTask mine = task;
    mine.scratch = thread_scratch(thread, linear_scratch_floats());
    kernel(mine, first, last);
  };
  if (task.tokens * task.weight.in_features * task.out_features < kSerialWork) {
    run(0, 0, parts);
  } else {
    // Beforehand: which thread gets its first part in which step is chance, and later steps shall allocate nothing.
    for (int thread = 0; thread < pool_.threads(); ++thread) thread_scratch(thread, linear_scratch_floats());
    pool_.share(parts, run);
  }
}

template <class Encoding>
void CpuBackend::run_linear(const Linear<Encoding>& op) {
  LinearTask task = linear_task(op);
  const int64_t features = task.weight.in_features;
  if (task.tokens == 0) return;
  // A block of one token is the token itself.
  task.x_blocks = op.x.template as<float>();
  if (task.tokens > 1) {
    float* packed = blocks_.floats(task.tokens * features);
    pack_blocks(op.x.template as<float>(), task.tokens, features, op.x.strides[0], 1, 1, packed);
    task.x_blocks = packed;
  }
  run_parts(task, tile_count(task.out_features), kernels_.linear);
}

PlaneBlocks CpuBackend::split(const TensorView& x, int bits, int64_t group_size) {
  const int64_t tokens = x.shape[0], features = x.shape[1];
  const ChunkShape shape = chunk_shape(bits, group_size);
  const int64_t groups = features / group_size, chunks = groups * shape.chunks();
  PlaneBlocks out{.planes = activations_ == ActivationMode::int8 ? 1 : bits == 8 ? 2 : 3};
  const int64_t words = tokens * groups * shape.group_steps() * out.planes;
  const int64_t sums = chunks * tokens * out.planes;
  out.steps = planes_.floats(words + sums + chunks * tokens + (tokens + 3) / 4);
  out.sums = reinterpret_cast<int32_t*>(out.steps + chunks * tokens);
  out.digits = out.sums + sums;
  out.special = reinterpret_cast<uint8_t*>(out.digits + words);
  out.x = x.as<float>();
  out.x_stride = x.strides[0];
  const SplitTask task{.x = x.as<float>(),
                       .tokens = tokens,
                       .token_stride = x.strides[0],
                       .in_features = features,
                       .bits = bits,
                       .group_size = group_size,
                       .out = out};
  run_split(task, kernels_.split);
  return out;
}

void CpuBackend::run_split(const SplitTask& task, void (*kernel)(const SplitTask&, int64_t, int64_t)) {
  const int64_t block = kernels_.plane_columns / task.out.planes, blocks = (task.tokens + block - 1) / block;
  if (task.tokens * task.in_features < kSerialWork) {
    kernel(task, 0, blocks);
  } else {
    pool_.parallel(blocks, [&](int, int64_t first, int64_t last) { kernel(task, first, last); });
  }
}

PlaneBlocks CpuBackend::split_binary(const TensorView& x, const TiledWeight& weight) {
  const int64_t tokens = x.shape[0], features = x.shape[1];
  int64_t steps = 0;
  const int64_t chunks = each_binary_chunk(features, weight.group_size, [&](const BinaryChunk& chunk) {
                           steps += chunk.steps();
                         }).index;
  PlaneBlocks out{.planes = 1};
  out.steps = planes_.floats(tokens * (steps + 3 * chunks) + (tokens + 3) / 4);
  out.sums = reinterpret_cast<int32_t*>(out.steps + chunks * tokens);
  out.digits = out.sums + 2 * chunks * tokens;
  out.special = reinterpret_cast<uint8_t*>(out.digits + tokens * steps);
  out.x = x.as<float>();
  out.x_stride = x.strides[0];
  run_split({.x = out.x,
             .tokens = tokens,
             .token_stride = x.strides[0],
             .in_features = features,
             .bits = 2,
             .group_size = weight.group_size,
             .out = out,
             .binary_order = weight.binary_order},
            kernels_.split_binary);
  return out;
}

template <class Encoding>
void CpuBackend::run_planes(const Linear<Encoding>& op) {
  LinearTask task = linear_task(op);
  if (task.tokens == 0) return;
  task.planes = split(op.x, op.weight.bits, op.weight.group_size);
  const int64_t tiles = tile_count(task.out_features), units = task.weight.column_units;
  if (units > 0) {
    run_parts(task, units, kernels_.linear_columns);
  } else {
    run_parts(task, tiles, kernels_.linear_planes);
  }
  run_special(task);
}

void CpuBackend::run_special(const LinearTask& task) {
  for (int64_t token = 0; token < task.tokens; ++token) {
    if (!task.planes.special[token]) continue;
    LinearTask alone = task;
    alone.planes = {};
    alone.tokens = 1;
    alone.x_blocks = task.planes.x + token * task.planes.x_stride;
    if (alone.positions) alone.positions += token;
    if (alone.residual) alone.residual += token * alone.residual_stride;
    alone.y += token * alone.y_stride;
    run_parts(alone, tile_count(task.out_features), kernels_.linear);
  }
}

void CpuBackend::run_binary(const Linear<ResidualBinaryView>& op) {
  LinearTask task = linear_task(op);
  if (task.tokens == 0) return;
  task.planes = split_binary(op.x, task.weight);
  run_parts(task, tile_count(task.out_features), kernels_.linear_binary);
  run_special(task);
}

void CpuBackend::run_fixed(const Linear<AffineView>& op, const IntegerCodes& codes) {
  LinearTask task = linear_task(op);
  const int64_t tokens = task.tokens, features = task.weight.in_features, group_size = op.weight.group_size;
  if (tokens == 0) return;
  // What an instruction set multiplies with codes of 8 bits: see fixed_kernels.h.
  const bool words = op.weight.bits == 8 && (codes.words || kernels_.words_of_bytes);
  const int64_t packed_steps = chunk_shape(op.weight.bits, group_size).group_steps(),
                groups = features / group_size;
  const int64_t steps = op.weight.bits == 8 && !words ? packed_steps / 2 : packed_steps;
  task.planes.planes = 1;
  task.planes.digits =
      reinterpret_cast<int32_t*>(planes_.floats(groups * tokens * (steps + 1) + (tokens + 3) / 4));
  task.planes.sums = task.planes.digits + groups * tokens * steps;
  task.planes.special = reinterpret_cast<uint8_t*>(task.planes.sums + groups * tokens);
  task.input_step = op.grid->step;
  task.input_offset = codes.offset;
  task.input_words = words;
  EncodeTask encode{.x = op.x.as<float>(),
                    .tokens = tokens,
                    .token_stride = op.x.strides[0],
                    .in_features = features,
                    .group_size = group_size,
                    .group_steps = steps,
                    .words = words,
                    .round = round_task(*op.grid),
                    .out = task.planes};
  encode.round.offset = float(codes.offset);
  const int64_t blocks = (tokens + kernels_.plane_columns - 1) / kernels_.plane_columns;
  if (tokens * features < kSerialWork) {
    kernels_.encode(encode, 0, blocks);
  } else {
    pool_.parallel(blocks, [&](int, int64_t first, int64_t last) { kernels_.encode(encode, first, last); });
  }
  run_parts(task, tile_count(task.out_features), kernels_.linear_fixed);
  for (int64_t token = 0; token < tokens; ++token) {
    if (!task.planes.special[token]) continue;
    Linear<AffineView> alone = op;
    alone.x = op.x.rows(token, 1);
    alone.y = op.y.rows(token, 1);
    if (alone.positions) alone.positions = op.positions.rows(token, 1);
    if (alone.residual) alone.residual = op.residual.rows(token, 1);
    // Its own scratch space: `planes_` is still in use.
    std::vector<float> rounded(static_cast<size_t>(features));
    const OutputView x(rounded.data(), DType::f32, {1, features});
    run(RoundActivations{.x = alone.x, .grid = *op.grid, .y = x});
    alone.x = x;
    alone.grid.reset();
    LinearTask one = linear_task(alone);
    one.x_blocks = rounded.data();
    run_parts(one, tile_count(task.out_features), kernels_.linear);
  }
}

template <class Encoding>
void CpuBackend::run_rounded(Linear<Encoding> op) {
  const OutputView x(rounded_.floats(op.x.shape.elements()), DType::f32, op.x.shape);
  run(RoundActivations{.x = op.x, .grid = *op.grid, .y = x});
  op.x = x;
  op.grid.reset();
  run(op);
}

void CpuBackend::run(const Linear<DenseView>& op) {
  if (op.grid) return run_rounded(op);
  run_linear(op);
}
void CpuBackend::run(const Linear<AffineView>& op) {
  if (!op.grid) return run_planes(op);
  if (const auto codes = integer_codes(*op.grid, op.weight)) return run_fixed(op, *codes);
  run_rounded(op);
}
void CpuBackend::run(const Linear<SparseOutlierView>& op) {
  if (op.grid) return run_rounded(op);
  run_planes(op);
}
void CpuBackend::run(const Linear<ResidualBinaryView>& op) {
  if (op.grid) return run_rounded(op);
  if (has_ordered_codes(op.weight)) return run_binary(op);
  run_linear(op);
}

}  // namespace ballast
