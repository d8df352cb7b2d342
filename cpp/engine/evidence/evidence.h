// From maps of an image to evidence: normalized with what normal images show, weighted, combined, scored (docs/evidence.md).
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <array>
#include <span>
#include <string>
#include <vector>

#include "bundle/bundle.h"

namespace diad {

// [N, H_i, W_i] float32: the cosine distances of three scales, then the distances to the memory.
using EvidenceMaps = std::array<at::Tensor, 4>;

// What normal images show at each position of each map, [H_i, W_i] or one for each image [N, H_i, W_i]; float32.
struct NormalMaps {
  EvidenceMaps mean;
  EvidenceMaps divisor;  // the spread with the added share of its average, at least kSmallestDivisor
};

// Identical calibration images spread by nothing: below this a difference is taken for rounding.
inline constexpr double kSmallestDivisor = 1e-6;

// Smooths the mean and the standard deviation of a map, [N, H, W] float64 each, and turns them into what NormalMaps holds for it.
struct NormalMap {
  at::Tensor mean, divisor;
};
[[nodiscard]] NormalMap normal_map(const at::Tensor& mean, const at::Tensor& spread);

// (map - mean) / divisor for each of the maps.
[[nodiscard]] EvidenceMaps normalized(const EvidenceMaps& maps, const NormalMaps& normal);

// Combined maps and scores of N images.
struct Evidence {
  at::Tensor raw;                                      // [N, S, S] float64: the weighted sum of the normalized maps
  at::Tensor smooth;                                   // [N, S, S] float64: blurred
  std::vector<double> scores, reconstruction, memory;  // [N]: of the combined map, and of its two parts alone
};

class EvidenceCombiner {
 public:
  // The manifest must have evidence.
  EvidenceCombiner(const Manifest& manifest, c10::Device device);

  // Maps of N images, weighted as their classes are; one class for each, or one for all.
  [[nodiscard]] Evidence operator()(const EvidenceMaps& normalized, std::span<const std::string> classes) const;

 private:
  // Blur and pools are linear, so each is one product from both sides. [S, S] and [P, S], float64.
  at::Tensor blur_, blur_and_pools_;
  int64_t size_;
  EvidenceSettings settings_;
};

}  // namespace diad
