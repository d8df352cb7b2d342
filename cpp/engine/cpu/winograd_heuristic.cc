#include "cpu/winograd_heuristic.h"

#include <algorithm>

namespace diad {

namespace {

// Minimum output pixels and channel pairs for Winograd's transforms to pay off.
constexpr int64_t kWinogradPixels = 256, kWinogradPairs = 64 * 64;

// Multiplications per image that each additional byte of weights must save. Layers that grow by at most
// kFreeGrowth bytes are exempt.
constexpr double kMinFlopsSavedPerByte = 300;
constexpr int64_t kFreeGrowth = 4 << 20;

// Cost of transforming and writing a weight, in multiplications: layers that run once per image can do it in
// every run. The cost is lower if the allocator reuses memory (tuneAllocator) and higher if the system maps
// new memory.
constexpr double kTransformOfAWeight = 100;

}  // namespace

// Compares multiplications per channel pair and pixel: 9 direct, 4 with 2 x 2 tiles, 2.25 with 4 x 4 tiles.
// The transformed weights, 16 or 36 per pair instead of 9, cost memory, or time if they are not stored.
WinogradChoice choose_winograd(int64_t pixels, int64_t pairs, int64_t runs) {
  if (pixels < kWinogradPixels || pairs < kWinogradPairs) return {};
  constexpr double kPlain = 9, kTwo = 16. / 4, kFour = 36. / 16;
  constexpr int64_t kGrowth2 = 4 * (16 - 9), kGrowth4 = 4 * (36 - 9);  // bytes
  const auto n = static_cast<double>(pixels);
  if (runs == 1 && kGrowth4 * pairs > kFreeGrowth) {
    const double two = kTwo * n + kTransformOfAWeight * 16, four = kFour * n + kTransformOfAWeight * 36;
    if (std::min(two, four) >= kPlain * n) return {};
    return {four < two ? 4 : 2, false};
  }
  const auto worth = [&](double saved, int64_t growth) {
    return growth * pairs <= kFreeGrowth ||
           saved * n * static_cast<double>(runs) >= kMinFlopsSavedPerByte * static_cast<double>(growth);
  };
  if (worth(kTwo - kFour, kGrowth4 - kGrowth2) && worth(kPlain - kFour, kGrowth4)) return {4};
  return {worth(kPlain - kTwo, kGrowth2) ? 2 : 0};
}

}  // namespace diad
