#include "bundle/sha256.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <fstream>
#include <vector>

#include "support/cancellation.h"
#include "support/engine_error.h"
#ifdef DIAD_X86_KERNELS
#ifdef _MSC_VER
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#include "bundle/sha256_ni.h"
#endif

namespace diad {

namespace {

constexpr std::array<uint32_t, 64> kRound{
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

// CPUID leaf 7: EBX bit 29 (SHA); leaf 1: ECX bits 9 and 19 (SSSE3, SSE4.1).
bool has_sha_instructions() {
#if defined(DIAD_X86_KERNELS) && defined(_MSC_VER)
  int leaf[4], features[4];
  __cpuid(leaf, 0);
  if (leaf[0] < 7) return false;
  __cpuid(leaf, 1);
  __cpuidex(features, 7, 0);
  return (leaf[2] & 1 << 9) && (leaf[2] & 1 << 19) && (features[1] & 1 << 29);
#elif defined(DIAD_X86_KERNELS)
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & 1U << 9) || !(ecx & 1U << 19)) return false;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ebx & 1U << 29);
#else
  return false;
#endif
}

}  // namespace

void Sha256::compress(const uint8_t* blocks, size_t count) {
#ifdef DIAD_X86_KERNELS
  static const bool by_instructions = has_sha_instructions();
  if (by_instructions && !portable_)
    return kernels::sha256_blocks(state_.data(), blocks, count, kRound.data());
#endif
  for (size_t i = 0; i < count; ++i) compress(blocks + 64 * i);
}

void Sha256::compress(const uint8_t* block) {
  std::array<uint32_t, 64> w{};
  for (size_t i = 0; i < 16; ++i) {
    w[i] = static_cast<uint32_t>(block[4 * i]) << 24 | static_cast<uint32_t>(block[4 * i + 1]) << 16 |
           static_cast<uint32_t>(block[4 * i + 2]) << 8 | block[4 * i + 3];
  }
  for (size_t i = 16; i < 64; ++i) {
    const uint32_t s0 = std::rotr(w[i - 15], 7) ^ std::rotr(w[i - 15], 18) ^ w[i - 15] >> 3;
    const uint32_t s1 = std::rotr(w[i - 2], 17) ^ std::rotr(w[i - 2], 19) ^ w[i - 2] >> 10;
    w[i] = w[i - 16] + s0 + w[i - 7] + s1;
  }
  auto [a, b, c, d, e, f, g, h] = state_;
  for (size_t i = 0; i < 64; ++i) {
    const uint32_t t1 =
        h + (std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25)) + ((e & f) ^ (~e & g)) + kRound[i] + w[i];
    const uint32_t t2 =
        (std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
    h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
  }
  const std::array<uint32_t, 8> added{a, b, c, d, e, f, g, h};
  std::transform(state_.begin(), state_.end(), added.begin(), state_.begin(), std::plus<>());
}

void Sha256::update(std::span<const uint8_t> bytes) {
  size_t filled = length_ % 64;
  length_ += bytes.size();
  if (filled > 0) {
    const size_t taken = std::min(64 - filled, bytes.size());
    std::memcpy(block_.data() + filled, bytes.data(), taken);
    bytes = bytes.subspan(taken);
    if (filled + taken < 64) return;
    compress(block_.data(), 1);
  }
  const size_t whole = bytes.size() / 64;
  compress(bytes.data(), whole);
  bytes = bytes.subspan(64 * whole);
  if (!bytes.empty()) std::memcpy(block_.data(), bytes.data(), bytes.size());
}

std::string Sha256::hex() {
  const uint64_t bits = length_ * 8;
  std::vector<uint8_t> padding((length_ % 64 < 56 ? 56 : 120) - length_ % 64, 0);
  padding[0] = 0x80;
  for (int shift = 56; shift >= 0; shift -= 8) padding.push_back(static_cast<uint8_t>(bits >> shift));
  update(padding);
  std::string digits;
  for (const uint32_t word : state_) {
    for (int shift = 28; shift >= 0; shift -= 4) digits.push_back("0123456789abcdef"[word >> shift & 15]);
  }
  return digits;
}

std::string sha256_of_file(const std::filesystem::path& file) {
  std::ifstream stream(file, std::ios::binary);
  if (!stream) throw EngineError(code::kBundleCorrupt, "Cannot read " + file.string());
  Sha256 hash;
  std::vector<uint8_t> buffer(1 << 20);
  while (stream) {
    check_cancelled();
    stream.read(reinterpret_cast<char*>(buffer.data()), static_cast<std::streamsize>(buffer.size()));
    hash.update(std::span(buffer.data(), static_cast<size_t>(stream.gcount())));
  }
  if (stream.bad()) throw EngineError(code::kBundleCorrupt, "Reading " + file.string() + " failed");
  return hash.hex();
}

}  // namespace diad
