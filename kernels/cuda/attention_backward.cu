#include <algorithm>
#include <vector>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/staged.h"
#include "kernels/ops/attention.h"

namespace ballast {

using namespace cuda;

namespace {

/// The sequence that a row belongs to.
struct Sequence {
  int32_t first, rows;
};

struct Inputs {
  const float *q, *k, *v, *d_out;
  int64_t q_stride, k_stride, v_stride, d_out_stride;
  const Sequence* sequences;  ///< [tokens]
  float* softmax;  ///< [tokens · heads][3]: largest score, 1 / Σ exp(score − it), Σ p · d_out·v
  int heads, head_dim;
  float scale;
  bool causal;

  /// a · b over one head, b in shared memory.
  BALLAST_DEVICE float dot(const float* a, int64_t stride, int row, int head, dev::Shared<float> s_b) const {
    float sum = 0;
    for (int d = 0; d < head_dim; ++d) sum = dev::fma(a[row * stride + head * head_dim + d], s_b.get(d), sum);
    return sum;
  }
  BALLAST_DEVICE float* softmax_of(int row, int head) const {
    return softmax + (int64_t(row) * heads + head) * 3;
  }
};

// dq. Work partition: a block owns a row and a head, a thread every 128th position and then every 128th value of dq.
struct QueryGradients {
  static constexpr int kThreads = 128, kBlocks = 4;
  struct Args {
    Inputs in;
    float* dq;
    int64_t dq_stride;
    int most_rows;
  };
  static int64_t shared_bytes(int64_t head_dim, int64_t most_rows) {
    return (2 * head_dim + 2 * most_rows) * 4 + 80;
  }

  static BALLAST_DEVICE void run(const Args& args) {
    const Inputs& in = args.in;
    const int row = dev::block(), head = dev::block_y(), thread = dev::thread();
    const Sequence of = in.sequences[row];
    const int seen = in.causal ? row - of.first + 1 : of.rows;
    dev::SharedArena arena;
    const auto s_q = arena.take<float>(in.head_dim), s_d_out = arena.take<float>(in.head_dim);
    const auto s_scores = arena.take<float>(args.most_rows), s_d = arena.take<float>(args.most_rows);
    const auto s_partial = arena.take<float>(kThreads / dev::kWarp);
    for (int d = thread; d < in.head_dim; d += kThreads) {
      s_q.set(d, in.q[row * in.q_stride + head * in.head_dim + d] * in.scale);
      s_d_out.set(d, in.d_out[row * in.d_out_stride + head * in.head_dim + d]);
    }
    dev::sync_block();
    float largest = -INFINITY;
    for (int j = thread; j < seen; j += kThreads) {
      const float score = in.dot(in.k, in.k_stride, of.first + j, head, s_q);
      s_scores.set(j, score);
      s_d.set(j, in.dot(in.v, in.v_stride, of.first + j, head, s_d_out));
      largest = dev::max(largest, score);
    }
    const float top = dev::block_max(largest, s_partial);
    float sum = 0;
    for (int j = thread; j < seen; j += kThreads) sum += dev::exp(s_scores.get(j) - top);
    const float inverse = 1.0f / dev::block_sum(sum, s_partial);
    float mean = 0;
    for (int j = thread; j < seen; j += kThreads)
      mean = dev::fma(dev::exp(s_scores.get(j) - top) * inverse, s_d.get(j), mean);
    mean = dev::block_sum(mean, s_partial);
    for (int j = thread; j < seen; j += kThreads)
      s_scores.set(j, dev::exp(s_scores.get(j) - top) * inverse * in.scale * (s_d.get(j) - mean));
    dev::sync_block();
    for (int d = thread; d < in.head_dim; d += kThreads) {
      float value = 0;
      for (int j = 0; j < seen; ++j)
        value = dev::fma(s_scores.get(j), in.k[(of.first + j) * in.k_stride + head * in.head_dim + d], value);
      args.dq[row * args.dq_stride + head * in.head_dim + d] += value;
    }
    if (thread == 0) {
      float* const softmax = in.softmax_of(row, head);
      softmax[0] = top, softmax[1] = inverse, softmax[2] = mean;
    }
  }
};

// dk and dv, behind QueryGradients. Work partition: a block owns a position and a head, a thread one of 128 queries at a time
// and then every 128th value of dk and dv.
struct KeyGradients {
  static constexpr int kThreads = 128, kBlocks = 4;
  struct Args {
    Inputs in;
    float *dk, *dv;
    int64_t dk_stride, dv_stride;
  };
  static int64_t shared_bytes(int64_t head_dim) { return (2 * head_dim + 2 * kThreads) * 4 + 32; }

  static BALLAST_DEVICE void run(const Args& args) {
    const Inputs& in = args.in;
    const int row = dev::block(), head = dev::block_y(), thread = dev::thread();
    const Sequence of = in.sequences[row];
    dev::SharedArena arena;
    const auto s_k = arena.take<float>(in.head_dim), s_v = arena.take<float>(in.head_dim);
    const auto s_p = arena.take<float>(kThreads), s_d = arena.take<float>(kThreads);
    for (int d = thread; d < in.head_dim; d += kThreads) {
      s_k.set(d, in.k[row * in.k_stride + head * in.head_dim + d] * in.scale);
      s_v.set(d, in.v[row * in.v_stride + head * in.head_dim + d]);
    }
    const int end = of.first + of.rows;
    for (int first = in.causal ? row : of.first; first < end; first += kThreads) {
      dev::sync_block();
      const int query = first + thread, count = end - first < kThreads ? end - first : kThreads;
      if (thread < count) {
        const float* softmax = in.softmax_of(query, head);
        const float p = dev::exp(in.dot(in.q, in.q_stride, query, head, s_k) - softmax[0]) * softmax[1];
        s_p.set(thread, p);
        s_d.set(thread, p * in.scale * (in.dot(in.d_out, in.d_out_stride, query, head, s_v) - softmax[2]));
      }
      dev::sync_block();
      for (int d = thread; d < in.head_dim; d += kThreads) {
        float of_key = 0, of_value = 0;
        for (int i = 0; i < count; ++i) {
          of_key = dev::fma(s_d.get(i), in.q[(first + i) * in.q_stride + head * in.head_dim + d], of_key);
          of_value = dev::fma(s_p.get(i), in.d_out[(first + i) * in.d_out_stride + head * in.head_dim + d],
                              of_value);
        }
        args.dk[row * args.dk_stride + head * in.head_dim + d] += of_key;
        args.dv[row * args.dv_stride + head * in.head_dim + d] += of_value;
      }
    }
  }
};

}  // namespace

void CudaBackend::run(const AttentionBackward& op) {
  op.check();
  forget_input();
  const int64_t tokens = op.q.shape[0], head_dim = op.q.shape[1] / op.heads;
  if (tokens == 0) return;
  std::vector<Sequence> sequences;
  int32_t most_rows = 0;
  for (const AttentionSpan& span : op.spans) {
    sequences.insert(sequences.end(), size_t(span.rows), Sequence{span.first_row, span.rows});
    most_rows = std::max(most_rows, span.rows);
  }
  const int64_t shared = QueryGradients::shared_bytes(head_dim, most_rows);
  if (shared > machine_.facts().shared_bytes)
    throw Error(str("--device cuda: gradients of attention over ", most_rows, " positions need ", shared,
                    " bytes of shared memory, and a block has ", machine_.facts().shared_bytes));
  const Staged q(machine_, stages_[0], op.q), k(machine_, stages_[1], op.k), v(machine_, stages_[2], op.v),
      d_out(machine_, stages_[3], op.d_out), dq(machine_, stages_[4], op.dq), dk(machine_, stages_[5], op.dk),
      dv(machine_, stages_[6], op.dv);
  const Inputs in{.q = q.as<float>(),
                  .k = k.as<float>(),
                  .v = v.as<float>(),
                  .d_out = d_out.as<float>(),
                  .q_stride = q.stride(),
                  .k_stride = k.stride(),
                  .v_stride = v.stride(),
                  .d_out_stride = d_out.stride(),
                  .sequences = reinterpret_cast<const Sequence*>(uploads_.on_device(
                      reinterpret_cast<const int32_t*>(sequences.data()), 2 * int64_t(sequences.size()))),
                  .softmax = parts_.of<float>(tokens * op.heads * 3),
                  .heads = int(op.heads),
                  .head_dim = int(head_dim),
                  .scale = op.scale,
                  .causal = op.mask == Mask::causal};
  launch<QueryGradients>(
      machine_, {.blocks = tokens, .blocks_y = op.heads, .shared_bytes = shared},
      {.in = in, .dq = dq.as<float>(), .dq_stride = dq.stride(), .most_rows = (most_rows + 3) / 4 * 4});
  launch<KeyGradients>(
      machine_,
      {.blocks = tokens, .blocks_y = op.heads, .shared_bytes = KeyGradients::shared_bytes(head_dim)},
      {.in = in,
       .dk = dk.as<float>(),
       .dv = dv.as<float>(),
       .dk_stride = dk.stride(),
       .dv_stride = dv.stride()});
  dq.put_back();
  dk.put_back();
  dv.put_back();
}

}  // namespace ballast
