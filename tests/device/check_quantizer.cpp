#include "tests/device/check_quantizer.h"

#include <algorithm>

#include "engine/core/tensor.h"
#include "tests/support/attention_gradients.h"
#include "tests/support/random.h"

namespace ballast::device {
namespace {

using test::Random;

TensorView view_of(const std::vector<float>& values, Shape shape) {
  return TensorView(values.data(), DType::f32, shape);
}
OutputView view_of(std::vector<float>& values, Shape shape) {
  return OutputView(values.data(), DType::f32, shape);
}
std::vector<float> narrowed(const std::vector<double>& values) {
  return {values.begin(), values.end()};
}

/// What `run` makes on both.
template <class Run>
void expect_close(Backend& cpu, Backend& cuda, Report& report, const std::string& what, double bound,
                  const Run& run) {
  const std::vector<float> expected = run(cpu), actual = run(cuda);
  report.expect_below(relative_error(actual, expected), bound, what);
  report.expect(run(cuda) == actual, what + ": another run gives the same bits");
}
template <class Run>
void expect_equal(Backend& cpu, Backend& cuda, Report& report, const std::string& what, const Run& run) {
  report.expect(run(cuda) == run(cpu), what + ": the bits of the CPU");
}

// Sums of f32 products of either sign: their roundings partly cancel, so 1e-5 is plenty for a thousand of them.
constexpr double kProducts = 1e-5;

void check_products(Backend& cpu, Backend& cuda, Report& report, bool small) {
  const int64_t tokens = small ? 40 : 1500, rows = small ? 70 : 500, columns = small ? 33 : 260;
  Random random(21);
  const std::vector<float> a = random.floats(tokens * rows), b = random.floats(tokens * columns);
  for (const bool same : {true, false})
    expect_close(
        cpu, cuda, report, same ? "second moment" : "cross moment", kProducts, [&](Backend& backend) {
          const int64_t width = same ? rows : columns;
          const TensorView of_a = view_of(a, {tokens, rows});
          std::vector<double> out(size_t(rows * width), 2);
          backend.run(
              SecondMoment{.a = of_a, .b = same ? of_a : view_of(b, {tokens, columns}), .out = out.data()});
          return narrowed(out);
        });
  expect_close(cpu, cuda, report, "cross moment that grows on the device", kProducts, [&](Backend& backend) {
    const Tensor sums =
        Tensor::from_floats(backend, std::vector<float>(size_t(rows * columns)), {rows, columns});
    for (int again = 0; again < 2; ++again)
      backend.run(SecondMoment{.a = view_of(a, {tokens, rows}),
                               .b = view_of(b, {tokens, columns}),
                               .out_f32 = sums.view().as<float>(),
                               .out_device = backend.device()});
    return sums.to_floats();
  });
  for (const bool add : {false, true})
    expect_close(cpu, cuda, report, add ? "product added" : "rank update", kProducts, [&](Backend& backend) {
      std::vector<float> w(size_t(tokens * columns), 0.5f);
      const std::vector<float> u(b.begin(), b.begin() + std::min(rows, tokens) * columns);
      TensorView e = view_of(a, {tokens, std::min(rows, tokens)});
      backend.run(RankUpdate{.e = e,
                             .u = view_of(u, {std::min(rows, tokens), columns}),
                             .w = view_of(w, {tokens, columns}),
                             .add = add});
      return w;
    });
}

void check_solver(Backend& cpu, Backend& cuda, Report& report, bool small) {
  Random random(22);
  for (const int64_t n : small ? std::vector<int64_t>{65} : std::vector<int64_t>{1, 64, 700, 2048}) {
    const int64_t samples = 24;
    const std::vector<float> a = random.floats(samples * n);
    std::vector<double> h(size_t(n * n));
    cpu.run(SecondMoment{.a = view_of(a, {samples, n}), .b = view_of(a, {samples, n}), .out = h.data()});
    for (int64_t i = 0; i < n; ++i) h[size_t(i * n + i)] += 0.1 * double(samples);
    // f64 throughout; the condition number is below 1e4.
    expect_close(cpu, cuda, report, str("factor of the inverse, ", n), 1e-7, [&](Backend& backend) {
      std::vector<double> u = h;
      report.expect(backend.run(FactorizeInverse{u.data(), n}),
                    str("a matrix of ", n, " is positive definite"));
      return narrowed(u);
    });
    h[size_t(n * n - 1)] = -1;
    report.expect(!cuda.run(FactorizeInverse{h.data(), n}), str("a matrix of ", n, " is not"));
  }
  const int64_t rows = small ? 9 : 1000, width = 128;
  for (const int bits : {2, 4, 8}) {
    std::vector<float> u = random.floats(width * width, -0.2f, 0.2f), zeros;
    for (int64_t i = 0; i < width; ++i) u[size_t(i * width + i)] = random.uniform(0.5f, 1.5f);
    const std::vector<float> w = random.floats(rows * width), scales = random.floats(2 * rows, 0.05f, 0.4f);
    for (int64_t i = 0; i < 2 * rows; ++i) zeros.push_back(float(random.below(1 << bits)));
    std::vector<int32_t> groups(size_t(width / 2));
    groups.resize(size_t(width), 1);
    expect_equal(cpu, cuda, report, str("columns rounded to ", bits, " bits"), [&](Backend& backend) {
      std::vector<float> errors = w;
      std::vector<uint8_t> codes(w.size());
      backend.run(RoundColumns{.w = view_of(errors, {rows, width}),
                               .u = view_of(u, {width, width}),
                               .scales = view_of(scales, {2, rows}),
                               .zeros = view_of(zeros, {2, rows}),
                               .groups = {groups.data(), DType::i32, {width}},
                               .codes = OutputView(codes.data(), DType::u8, {rows, width}),
                               .max_code = (1 << bits) - 1});
      errors.insert(errors.end(), codes.begin(), codes.end());
      return errors;
    });
  }
}

void check_statistics(Backend& cpu, Backend& cuda, Report& report, bool small) {
  const int64_t tokens = small ? 20 : 700, width = small ? 70 : 900;
  Random random(23);
  std::vector<float> x = random.floats(tokens * width), other = random.floats(tokens * width);
  for (size_t i = 0; i < x.size(); i += 3) x[i] = 0;
  std::vector<int32_t> positions;
  for (int64_t t = 0; t < tokens; ++t) positions.push_back(int32_t(t % 7));
  expect_equal(cpu, cuda, report, "sums of columns", [&](Backend& backend) {
    std::vector<double> sums(static_cast<size_t>(width)), by_position(size_t(4 * width));
    int64_t zeros = 0;
    backend.run(ColumnSums{.x = view_of(x, {tokens, width}),
                           .positions = {positions.data(), DType::i32, {tokens}},
                           .sums = sums.data(),
                           .position_sums = by_position.data(),
                           .position_count = 4,
                           .zeros = &zeros});
    sums.insert(sums.end(), by_position.begin(), by_position.end());
    sums.push_back(double(zeros));
    return sums;
  });
  expect_equal(cpu, cuda, report, "difference", [&](Backend& backend) {
    std::vector<float> y = other;
    backend.run(Subtract{.a = view_of(x, {tokens, width}),
                         .b = view_of(y, {tokens, width}),
                         .y = view_of(y, {tokens, width})});
    return y;
  });
  expect_equal(cpu, cuda, report, "rows in halves", [&](Backend& backend) {
    std::vector<float> scales(static_cast<size_t>(tokens)), back(x.size());
    std::vector<uint16_t> halves(x.size());
    const OutputView to(halves.data(), DType::f16, {tokens, width});
    backend.run(
        StoreHalfRows{.x = view_of(x, {tokens, width}), .halves = to, .scales = view_of(scales, {tokens})});
    backend.run(
        LoadHalfRows{.halves = to, .scales = view_of(scales, {tokens}), .x = view_of(back, {tokens, width})});
    return back;
  });
  for (const ActivationGrid& grid :
       {ActivationGrid{.bits = 4, .step = 0.13f, .zero_point = 7},
        {.kind = ActivationGrid::Kind::twin_sign, .bits = 4, .step = 0.03f, .shift = 2},
        {.kind = ActivationGrid::Kind::logarithm, .bits = 4, .step = 0.9f, .per_octave = 2}})
    expect_equal(cpu, cuda, report, "activations on a grid", [&](Backend& backend) {
      std::vector<float> y(other.size());
      backend.run(RoundActivations{
          .x = view_of(other, {tokens, width}), .grid = grid, .y = view_of(y, {tokens, width})});
      return y;
    });
}

void check_gradients(Backend& cpu, Backend& cuda, Report& report, bool small) {
  const int64_t tokens = small ? 7 : 200, width = small ? 65 : 1030;
  Random random(24);
  const std::vector<float> x = random.floats(tokens * width, -3, 3), dy = random.floats(tokens * width),
                           weight = random.floats(width);
  const Shape shape{tokens, width};
  for (const Activation activation : {Activation::relu, Activation::gelu})
    expect_close(cpu, cuda, report, "back through an activation", 1e-6, [&](Backend& backend) {
      std::vector<float> d = dy;
      backend.run(
          ActivationBackward{.activation = activation, .z = view_of(x, shape), .dy = view_of(d, shape)});
      return d;
    });
  expect_close(cpu, cuda, report, "back through layernorm", 1e-5, [&](Backend& backend) {
    std::vector<float> dx = x;
    backend.run(LayerNormBackward{.x = view_of(x, shape),
                                  .weight = view_of(weight, {width}),
                                  .dy = view_of(dy, shape),
                                  .accumulate = true,
                                  .dx = view_of(dx, shape)});
    return dx;
  });
  const std::vector<test::AttentionGradients> cases =
      small ? std::vector<test::AttentionGradients>{{2, 12, {9, 4}, Mask::causal}}
            : std::vector<test::AttentionGradients>{{3, 64, {300, 77}, Mask::causal},
                                                    {4, 80, {197, 197}, Mask::full}};
  for (const auto& c : cases) {
    const auto inputs = c.inputs();
    expect_close(cpu, cuda, report, "back through attention, " + c.text(), 1e-5,
                 [&](Backend& backend) { return c.run(backend, inputs); });
  }
  std::vector<int32_t> targets;
  for (int64_t t = 0; t < tokens; ++t) targets.push_back(int32_t(t % 5 == 4 ? -1 : t % width));
  for (const bool soft : {false, true})
    expect_close(
        cpu, cuda, report, soft ? "loss against a teacher" : "loss of targets", 1e-5, [&](Backend& backend) {
          std::vector<float> logits = x;
          std::vector<double> losses(static_cast<size_t>(tokens));
          CrossEntropyBackward op{.scale = 0.1f, .logits = view_of(logits, shape), .loss = losses.data()};
          if (soft)
            op.teacher = view_of(dy, shape);
          else
            op.targets = {targets.data(), DType::i32, {tokens}};
          backend.run(op);
          logits.insert(logits.end(), losses.begin(), losses.end());
          return logits;
        });
}

void check_choice(Backend& cpu, Backend& cuda, Report& report, bool small) {
  const int64_t vocab = small ? 700 : 50272;
  Random random(25);
  std::vector<TokenChoice> choices;
  for (const double temperature : {0.0, 0.8, 2.0})
    for (const int32_t candidates : {0, 50, 1024})
      choices.push_back(
          {temperature, double(random.uniform(0, 0.99f)), int32_t(random.below(vocab)), candidates});
  const auto rows = int64_t(choices.size());
  const std::vector<float> logits = random.floats(rows * vocab, -9, 9);
  expect_equal(cpu, cuda, report, "tokens chosen", [&](Backend& backend) {
    std::vector<ChosenToken> chosen(choices.size());
    std::vector<Candidate> candidates(choices.size() * ChooseTokens::kMostCandidates, {0, -1});
    backend.run(ChooseTokens{.logits = view_of(logits, {rows, vocab}),
                             .usable = vocab,
                             .choices = choices,
                             .chosen = chosen,
                             .candidates = candidates});
    std::vector<int32_t> found;
    for (size_t row = 0; row < choices.size(); ++row) {
      const auto wide = std::min(int64_t(choices[row].candidates), vocab);
      if (wide == 0) found.push_back(chosen[row].token);
      for (int64_t i = 0; i < wide; ++i)
        found.push_back(candidates[row * ChooseTokens::kMostCandidates + size_t(i)].id);
    }
    return found;
  });
}

}  // namespace

void check_quantizer(Backend& cpu, Backend& cuda, Report& report, bool small) {
  check_products(cpu, cuda, report, small);
  check_solver(cpu, cuda, report, small);
  check_statistics(cpu, cuda, report, small);
  check_gradients(cpu, cuda, report, small);
  check_choice(cpu, cuda, report, small);
}

}  // namespace ballast::device
