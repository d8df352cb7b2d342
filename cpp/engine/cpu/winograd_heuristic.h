// Decides which layers use WinogradConv, and how.
#pragma once

#include <cstdint>

namespace diad {

// How to compute a layer with WinogradConv; tile 0: not at all.
struct WinogradChoice {
  int64_t tile = 0;
  bool stored = true;
};

// Chooses for a layer by its output pixels per image, its pairs of input and output channels, and the number
// of passes (`runs`) per image.
[[nodiscard]] WinogradChoice choose_winograd(int64_t pixels, int64_t pairs, int64_t runs);

}  // namespace diad
