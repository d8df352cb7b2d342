// Anomaly map and image score (paper section 3.4).
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <vector>

#include "bundle/bundle.h"
#include "networks/features.h"

namespace diad {

struct AnomalyMaps {
  Features distances;          // [N, S, S] float32 each: 1 - cosine similarity, upsampled
  at::Tensor raw;              // [N, S, S] float64: sum of the distances
  at::Tensor smooth;           // [N, S, S] float64: raw, blurred
  std::vector<double> scores;  // [N]
};

// Returns the Gaussian blur along one axis as a matrix [size, size], float64: row i holds the weights of
// output i.
[[nodiscard]] at::Tensor blur_matrix(int64_t size, double sigma, double truncate);

// Blurs maps [N, S, S], float64, with a Gaussian. sigma is in pixels, the kernel is truncated at truncate *
// sigma, and borders are reflected with the edge sample repeated (the default of
// scipy.ndimage.gaussian_filter).
[[nodiscard]] at::Tensor gaussian_blur(const at::Tensor& maps, double sigma, double truncate);

// Returns the maximum after `count` average pools of size x size, stride 1, no padding: [N, S, S] float64 ->
// [N].
[[nodiscard]] at::Tensor pooled_maximum(const at::Tensor& maps, int64_t size, int64_t count);

// Computes 1 - cosine similarity of input and reconstructed features at each position: [N, H_i, W_i] float32.
[[nodiscard]] Features cosine_distances(const Features& input, const Features& reconstructed);

// Upsamples maps [N, H, W], float32, bilinearly to [N, size, size] with aligned corners.
[[nodiscard]] at::Tensor enlarged(const at::Tensor& maps, int64_t size);

// Computes the published anomaly map and score from the distances at the three scales.
[[nodiscard]] AnomalyMaps anomaly_maps(const Features& distances, const Manifest& manifest);

}  // namespace diad
