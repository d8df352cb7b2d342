// Anomaly map and image score (paper section 3.4).
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <vector>

#include "bundle/bundle.h"

namespace diad {

using Features = std::array<at::Tensor, 3>;  // [N, C_i, H_i, W_i], strides 4, 8, 16 of the image

struct AnomalyMaps {
  Features distances;          // [N, S, S] float32 each, 1 - cosine, upsampled
  at::Tensor raw;              // [N, S, S] float64, their sum
  at::Tensor smooth;           // [N, S, S] float64, blurred
  std::vector<double> scores;  // [N]
};

// The blur below along one axis as a matrix [size, size], float64: row i holds the weights of output i.
[[nodiscard]] at::Tensor blur_matrix(int64_t size, double sigma, double truncate);

// Gaussian blur of maps [N, S, S], float64: sigma in pixels, cut at truncate * sigma, border reflected with
// its edge sample repeated (scipy.ndimage.gaussian_filter's default).
[[nodiscard]] at::Tensor gaussian_blur(const at::Tensor& maps, double sigma, double truncate);

// Maximum after `count` average pools of size x size, stride 1, no padding: [N, S, S] float64 -> [N].
[[nodiscard]] at::Tensor pooled_maximum(const at::Tensor& maps, int64_t size, int64_t count);

// 1 - cosine of the features of inputs and reconstructions at each position: [N, H_i, W_i] float32.
[[nodiscard]] Features cosine_distances(const Features& input, const Features& reconstructed);

// Maps [N, H, W] float32, upsampled to [N, size, size] bilinearly, corners aligned.
[[nodiscard]] at::Tensor enlarged(const at::Tensor& maps, int64_t size);

// The published map and score from the distances of the scales.
[[nodiscard]] AnomalyMaps anomaly_maps(const Features& distances, const Manifest& manifest);

}  // namespace diad
