// Writes NumPy's .npy format, version 1.0, float32.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <span>
#include <stdexcept>
#include <string>

namespace diad {

// Writes a row-major array. Throws std::runtime_error if the file cannot be written.
inline void write_npy(const std::filesystem::path& file, std::span<const int64_t> shape,
                      const float* values) {
  std::string dimensions;
  size_t count = 1;
  for (const int64_t side : shape) {
    dimensions += std::to_string(side) + ",";
    count *= static_cast<size_t>(side);
  }
  std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (" + dimensions + "), }";
  header.append(63 - (10 + header.size()) % 64, ' ')
      .push_back('\n');  // magic, version and length take 10 bytes; padded to a multiple of 64
  std::ofstream stream(file, std::ios::binary);
  stream << "\x93NUMPY" << '\x01' << '\x00' << static_cast<char>(header.size() & 0xff)
         << static_cast<char>(header.size() >> 8) << header;
  stream.write(reinterpret_cast<const char*>(values), static_cast<std::streamsize>(count * sizeof(float)));
  stream.close();
  if (!stream) throw std::runtime_error("Cannot write " + file.string());
}

}  // namespace diad
