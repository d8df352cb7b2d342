// Which layers WinogradConv computes, and how.
#pragma once

#include <cstdint>

namespace diad {

// How WinogradConv should compute a layer; tile 0: not at all.
struct WinogradChoice {
  int64_t tile = 0;
  bool stored = true;
};

// For a layer with so many output pixels an image and pairs of input and output channels, which an image
// passes `runs` times.
[[nodiscard]] WinogradChoice choose_winograd(int64_t pixels, int64_t pairs, int64_t runs);

}  // namespace diad
