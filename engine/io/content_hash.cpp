#include "engine/io/content_hash.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <vector>

#include "kernels/check.h"

namespace ballast {
namespace {

static_assert(std::endian::native == std::endian::little, "words are read as they lie");

constexpr uint64_t kPrime1 = 0x9E3779B185EBCA87u, kPrime2 = 0xC2B2AE3D27D4EB4Fu,
                   kPrime3 = 0x165667B19E3779F9u, kPrime4 = 0x85EBCA77C2B2AE63u,
                   kPrime5 = 0x27D4EB2F165667C5u;
constexpr size_t kStripe = 32;
constexpr size_t kBuffer = size_t(1) << 20;

template <class Word>
uint64_t word_at(const char* bytes) {
  Word word;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}

uint64_t round(uint64_t lane, uint64_t word) {
  return std::rotl(lane + word * kPrime2, 31) * kPrime1;
}

void take_stripe(std::array<uint64_t, 4>& lanes, const char* stripe) {
  for (size_t i = 0; i < 4; ++i) lanes[i] = round(lanes[i], word_at<uint64_t>(stripe + 8 * i));
}

void add_file(ContentHash& hash, const std::filesystem::path& path) {
  // O_NONBLOCK: a FIFO must not keep us waiting for its writer.
  const int file = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  struct stat status {};
  const bool regular = file >= 0 && ::fstat(file, &status) == 0 && S_ISREG(status.st_mode);
  int reason = file < 0 ? errno : EINVAL;
  ssize_t count = regular ? 1 : -1;
  for (std::vector<char> buffer(kBuffer); count > 0;) {
    do count = ::read(file, buffer.data(), buffer.size());
    while (count < 0 && errno == EINTR);
    reason = errno;
    if (count > 0) hash.add({buffer.data(), size_t(count)});
  }
  if (file >= 0) ::close(file);
  if (count < 0)
    throw Error(str(path.string(),
                    ": cannot read: ", reason == EINVAL ? "expected a regular file" : std::strerror(reason)));
}

}  // namespace

ContentHash::ContentHash() : lanes_{kPrime1 + kPrime2, kPrime2, 0, 0 - kPrime1} {}

void ContentHash::add(std::string_view bytes) {
  const size_t held = size_ % kStripe;
  size_ += bytes.size();
  if (held > 0 || bytes.size() < kStripe) {
    const size_t taken = std::min(kStripe - held, bytes.size());
    std::copy_n(bytes.data(), taken, pending_.data() + held);
    bytes.remove_prefix(taken);
    if (held + taken < kStripe) return;
    take_stripe(lanes_, pending_.data());
  }
  for (; bytes.size() >= kStripe; bytes.remove_prefix(kStripe)) take_stripe(lanes_, bytes.data());
  std::copy_n(bytes.data(), bytes.size(), pending_.data());
}

uint64_t ContentHash::value() const {
  uint64_t hash = kPrime5;
  if (size_ >= kStripe) {
    hash = std::rotl(lanes_[0], 1) + std::rotl(lanes_[1], 7) + std::rotl(lanes_[2], 12) +
           std::rotl(lanes_[3], 18);
    for (uint64_t lane : lanes_) hash = (hash ^ round(0, lane)) * kPrime1 + kPrime4;
  }
  hash += size_;
  const char* at = pending_.data();
  size_t left = size_ % kStripe;
  for (; left >= 8; left -= 8, at += 8)
    hash = std::rotl(hash ^ round(0, word_at<uint64_t>(at)), 27) * kPrime1 + kPrime4;
  for (; left >= 4; left -= 4, at += 4)
    hash = std::rotl(hash ^ word_at<uint32_t>(at) * kPrime1, 23) * kPrime2 + kPrime3;
  for (; left > 0; --left, ++at) hash = std::rotl(hash ^ word_at<uint8_t>(at) * kPrime5, 11) * kPrime1;
  hash = (hash ^ hash >> 33) * kPrime2;
  hash = (hash ^ hash >> 29) * kPrime3;
  return hash ^ hash >> 32;
}

uint64_t content_hash(std::string_view bytes) {
  ContentHash hash;
  hash.add(bytes);
  return hash.value();
}

uint64_t content_hash_of_files(const std::vector<std::filesystem::path>& paths) {
  ContentHash hash;
  for (const auto& path : paths) add_file(hash, path);
  return hash.value();
}

std::string hex(uint64_t hash) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text(16, '0');
  for (size_t i = 0; i < 16; ++i) text[i] = kDigits[hash >> (60 - 4 * i) & 15];
  return text;
}

}  // namespace ballast
