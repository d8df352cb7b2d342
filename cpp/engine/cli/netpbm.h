// Reads 8-bit binary PGM (P5) and PPM (P6) images. diad-engine has no image codecs.
#pragma once

#include <cctype>
#include <cstdint>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace diad {

struct NetpbmImage {
  std::vector<uint8_t> pixels;
  uint32_t width = 0, height = 0, channels = 0;
};

// Reads an image. Throws std::runtime_error with the file's name.
inline NetpbmImage read_netpbm(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  const auto fail = [&file](const std::string& why) -> NetpbmImage {
    throw std::runtime_error(file + ": " + why);
  };
  if (!stream) return fail("cannot be read");
  const auto token = [&stream] {
    std::string word;
    for (int c = stream.get(); c != EOF; c = stream.get()) {
      if (c == '#') {
        while (c != '\n' && c != EOF) c = stream.get();
      } else if (std::isspace(c) == 0) {
        word.push_back(static_cast<char>(c));
      } else if (!word.empty()) {
        break;
      }
    }
    return word;
  };
  const std::string magic = token();
  if (magic != "P5" && magic != "P6") return fail("Expected a binary PGM or PPM (P5, P6)");
  NetpbmImage image;
  image.channels = magic == "P5" ? 1 : 3;
  unsigned long sides[3] = {};
  for (unsigned long& side : sides) {
    const std::string word = token();
    if (word.empty() || word.size() > 6 || word.find_first_not_of("0123456789") != std::string::npos)
      return fail("Expected a number in the header");
    side = std::stoul(word);
  }
  if (sides[0] == 0 || sides[1] == 0 || sides[2] != 255)
    return fail("Expected an image of at least 1 x 1 with 255 levels");
  image.width = static_cast<uint32_t>(sides[0]);
  image.height = static_cast<uint32_t>(sides[1]);
  image.pixels.resize(sides[0] * sides[1] * image.channels);
  stream.read(reinterpret_cast<char*>(image.pixels.data()),
              static_cast<std::streamsize>(image.pixels.size()));
  if (static_cast<size_t>(stream.gcount()) != image.pixels.size()) return fail("ends before its last pixel");
  return image;
}

}  // namespace diad
