#include "tools/bench_machine.h"

#include <ctime>
#include <fstream>
#include <thread>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "tools/console.h"

namespace ballast {
namespace {

#if defined(__x86_64__)
// Four sums, so that no chain of additions limits the rate.
__attribute__((target("avx2"))) uint64_t sum_words(const uint64_t* words, int64_t count) {
  __m256i sums[4] = {};
  for (int64_t i = 0; i < count; i += 16)
    for (int64_t part = 0; part < 4; ++part)
      sums[part] = _mm256_add_epi64(
          sums[part], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words + i + 4 * part)));
  const __m256i all =
      _mm256_add_epi64(_mm256_add_epi64(sums[0], sums[1]), _mm256_add_epi64(sums[2], sums[3]));
  uint64_t lanes[4];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), all);
  return lanes[0] + lanes[1] + lanes[2] + lanes[3];
}

// Ten chains: more than latency times rate of any processor so far.
constexpr int kChains = 10;

__attribute__((target("avx2,fma"))) float multiply_256(int64_t rounds) {
  const __m256 factor = _mm256_set1_ps(0.5f);
  __m256 sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = _mm256_set1_ps(float(i));
  for (int64_t round = 0; round < rounds; ++round)
#pragma GCC unroll 10
    for (int i = 0; i < kChains; ++i) sums[i] = _mm256_fmadd_ps(sums[i], factor, factor);
  __m256 total = sums[0];
  for (int i = 1; i < kChains; ++i) total = _mm256_add_ps(total, sums[i]);
  return _mm256_cvtss_f32(total);
}

__attribute__((target("avx512f"))) float multiply_512(int64_t rounds) {
  const __m512 factor = _mm512_set1_ps(0.5f);
  __m512 sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = _mm512_set1_ps(float(i));
  for (int64_t round = 0; round < rounds; ++round)
#pragma GCC unroll 10
    for (int i = 0; i < kChains; ++i) sums[i] = _mm512_fmadd_ps(sums[i], factor, factor);
  __m512 total = sums[0];
  for (int i = 1; i < kChains; ++i) total = _mm512_add_ps(total, sums[i]);
  return _mm512_cvtss_f32(total);
}
#endif

uint64_t plain_sum(const uint64_t* words, int64_t count) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += words[i];
  return sum;
}

// `rounds` times kChains vectors; returns lanes per vector, 1 where only the compiler knows.
int64_t multiply(int64_t rounds, float& out) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) {
    out = multiply_512(rounds);
    return 16;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    out = multiply_256(rounds);
    return 8;
  }
#endif
  float sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = float(i);
  for (int64_t round = 0; round < rounds; ++round)
    for (float& sum : sums) sum = sum * 0.5f + 0.5f;
  out = 0;
  for (const float sum : sums) out += sum;
  return 1;
}

constexpr int64_t kPieceWords = 4096;

}  // namespace

double MemoryReader::pass(int64_t words) {
  const int64_t pieces = words / kPieceWords;
  std::vector<uint64_t> sums(static_cast<size_t>(pieces));
  const double start = now();
  backend_.parallel_for(pieces, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const uint64_t* const from = buffer_.data() + piece * kPieceWords;
#if defined(__x86_64__)
      static const bool wide = __builtin_cpu_supports("avx2");
      sums[size_t(piece)] = wide ? sum_words(from, kPieceWords) : plain_sum(from, kPieceWords);
#else
      sums[size_t(piece)] = plain_sum(from, kPieceWords);
#endif
    }
  });
  const double taken = now() - start;
  uint64_t total = 0;
  for (const uint64_t sum : sums) total += sum;
  CHECK(total == uint64_t(words), "the sum keeps the reads from being optimized away");
  return double(words * 8) / taken;
}

double MemoryReader::rate(int64_t bytes) {
  const int64_t words =
      std::clamp<int64_t>(bytes / 8 / kPieceWords, 1, kLargestSet / 8 / kPieceWords) * kPieceWords;
  if (int64_t(buffer_.size()) < words) buffer_.assign(size_t(words), 1);
  pass(words);
  double best = 0;
  const double start = now();
  for (int round = 0; round < 3 || now() - start < 0.1; ++round) best = std::max(best, pass(words));
  check_interrupt();
  return best;
}

double peak_multiply_adds(Backend& backend) {
  constexpr int64_t kRounds = 1 << 18, kParts = 64;  // a few milliseconds; parts are shared by the threads
  std::vector<float> sinks(static_cast<size_t>(kParts));
  std::vector<int64_t> lanes(static_cast<size_t>(kParts));
  double best = 0;
  for (int round = 0; round < 10; ++round) {
    const double start = now();
    backend.parallel_for(kParts, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part)
        lanes[size_t(part)] = multiply(kRounds / kParts * 8, sinks[size_t(part)]);
    });
    const double taken = now() - start;
    int64_t operations = 0;
    for (size_t part = 0; part < sinks.size(); ++part) {
      CHECK(std::isfinite(sinks[part]));
      operations += lanes[part] * kChains * (kRounds / kParts * 8);
    }
    best = std::max(best, double(operations) / taken);
  }
  check_interrupt();
  return best;
}

nlohmann::json machine_facts() {
  nlohmann::json facts = {{"processors", std::thread::hardware_concurrency()}};
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line) && !line.empty();) {
    const size_t colon = line.find(": ");
    if (colon != line.npos && line.starts_with("model name")) facts["processor"] = line.substr(colon + 2);
    if (colon == line.npos || !line.starts_with("flags")) continue;
    for (const char* flag : {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni",
                             "avx512_fp16", "avx512_bf16", "amx_int8"})
      if ((line + " ").find(std::string(" ") + flag + " ") != line.npos) facts["flags"].push_back(flag);
  }
  char date[32];
  const std::time_t seconds = std::time(nullptr);
  std::strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&seconds));
  facts["date"] = date;
  return facts;
}

}  // namespace ballast
