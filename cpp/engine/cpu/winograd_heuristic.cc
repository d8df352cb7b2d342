#include "cpu/winograd_heuristic.h"

#include <algorithm>

namespace diad {

namespace {

// Output pixels from which Winograd's transforms pay, and channel pairs below which oneDNN is as fast.
constexpr int64_t kWinogradPixels = 256, kWinogradPairs = 64 * 64;

// A byte by which weights grow must save so many multiplications an image; layers that grow by less than
// kFreeGrowth bytes need not ask.
constexpr double kMinFlopsSavedPerByte = 300;
constexpr int64_t kFreeGrowth = 4 << 20;

// What a weight that is transformed and written costs, in multiplications: layers that run once an image can
// do it then. It is less where the allocator keeps memory for the next layer (tuneAllocator), more where the
// system gives it anew.
constexpr double kTransformOfAWeight = 100;

}  // namespace

// By the multiplications a channel pair needs: 9 a pixel plainly, 4 with tiles of 2 x 2, 2.25 with tiles of 4
// x 4. The transformed weights, 16 or 36 a pair instead of 9, cost memory, or time where they do not last.
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
