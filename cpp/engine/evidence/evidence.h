// Turns the maps of an image into evidence: normalizes them by the statistics of normal images, combines them
// with weights and scores the result (docs/design/evidence.md).
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <array>
#include <span>
#include <string>
#include <vector>

#include "bundle/bundle.h"

namespace diad {

// [N, H_i, W_i] float32: cosine distances at three scales, then distances to the memory.
using EvidenceMaps = std::array<at::Tensor, 4>;

// Statistics of normal images at each position of each map; float32, [H_i, W_i], or [N, H_i, W_i] with one
// for each image.
struct NormalMaps {
  EvidenceMaps mean;
  EvidenceMaps divisor;  // spread plus a share of its average, at least kSmallestDivisor
};

// Lower bound of the divisor: identical calibration images have no spread, and smaller differences are
// rounding.
inline constexpr double kSmallestDivisor = 1e-6;

// Smooths mean and standard deviation of a map, both [N, H, W] float64, and returns its entry of NormalMaps.
struct NormalMap {
  at::Tensor mean, divisor;
};
[[nodiscard]] NormalMap normal_map(const at::Tensor& mean, const at::Tensor& spread);

// Computes (map - mean) / divisor for each map.
[[nodiscard]] EvidenceMaps normalized(const EvidenceMaps& maps, const NormalMaps& normal);

// Combined maps and scores of N images.
struct Evidence {
  at::Tensor raw;     // [N, S, S] float64: weighted sum of the normalized maps
  at::Tensor smooth;  // [N, S, S] float64: raw, blurred
  // [N] scores of the combined map and of each part on its own.
  std::vector<double> scores, reconstruction, memory;
};

class EvidenceCombiner {
 public:
  // The manifest must have evidence.
  EvidenceCombiner(const Manifest& manifest, c10::Device device);

  // Maps of N images, weighted as their classes are; one class for each, or one for all.
  [[nodiscard]] Evidence operator()(const EvidenceMaps& normalized,
                                    std::span<const std::string> classes) const;

 private:
  // Blur and pools are linear: each is one matrix product from both sides. [S, S] and [P, S], float64.
  at::Tensor blur_, blur_and_pools_;
  int64_t size_;
  EvidenceSettings settings_;
};

}  // namespace diad
