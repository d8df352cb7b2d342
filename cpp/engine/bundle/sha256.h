// SHA-256 (FIPS 180-4) for the bundle's integrity check.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

namespace diad {

class Sha256 {
 public:
  // `portable` disables the SHA instructions of the CPU.
  explicit Sha256(bool portable = false) : portable_(portable) {}

  void update(std::span<const uint8_t> bytes);
  // Returns 64 lower-case hex digits. The object must not be used afterwards.
  [[nodiscard]] std::string hex();

 private:
  void compress(const uint8_t* blocks, size_t count);
  void compress(const uint8_t* block);

  bool portable_;

  std::array<uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, 64> block_{};
  uint64_t length_ = 0;
};

// Returns the digest of a file. Throws EngineError ERR_DIAD_BUNDLE_CORRUPT if the file cannot be read.
[[nodiscard]] std::string sha256_of_file(const std::filesystem::path& file);

}  // namespace diad
