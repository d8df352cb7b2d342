#include "evidence/anomaly_map.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/avg_pool2d.h>
#include <ATen/ops/cosine_similarity.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/upsample_bilinear2d.h>
#include <ATen/ops/zeros.h>

#include <cmath>

namespace diad {

namespace {

// Maps position i to an index in 0..size-1 by reflecting at both ends with the edge sample repeated:
// d c b a | a b c d | d c b a.
int64_t mirrored(int64_t i, int64_t size) {
  const int64_t period = 2 * size;
  const int64_t folded = ((i % period) + period) % period;
  return folded < size ? folded : period - 1 - folded;
}

}  // namespace

at::Tensor blur_matrix(int64_t size, double sigma, double truncate) {
  const auto radius = static_cast<int64_t>(truncate * sigma + 0.5);
  std::vector<double> kernel;
  double total = 0;
  for (int64_t k = -radius; k <= radius; ++k) {
    kernel.push_back(std::exp(-0.5 * static_cast<double>(k * k) / (sigma * sigma)));
    total += kernel.back();
  }
  at::Tensor matrix = at::zeros({size, size}, at::kDouble);
  auto* weights = matrix.mutable_data_ptr<double>();
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t k = -radius; k <= radius; ++k) {
      weights[i * size + mirrored(i + k, size)] += kernel[static_cast<size_t>(k + radius)] / total;
    }
  }
  return matrix;
}

at::Tensor gaussian_blur(const at::Tensor& maps, double sigma, double truncate) {
  const at::Tensor rows = blur_matrix(maps.size(1), sigma, truncate).to(maps.device());
  const at::Tensor columns =
      maps.size(1) == maps.size(2) ? rows : blur_matrix(maps.size(2), sigma, truncate).to(maps.device());
  return at::matmul(at::matmul(rows, maps), columns.t());
}

at::Tensor pooled_maximum(const at::Tensor& maps, int64_t size, int64_t count) {
  at::Tensor pooled = maps.unsqueeze(1);
  for (int64_t i = 0; i < count; ++i) pooled = at::avg_pool2d(pooled, size, 1);
  return pooled.amax({1, 2, 3});
}

Features cosine_distances(const Features& input, const Features& reconstructed) {
  Features distances;
  for (size_t i = 0; i < input.size(); ++i) {
    distances[i] =
        1 - at::cosine_similarity(input[i].to(at::kFloat), reconstructed[i].to(at::kFloat), 1, 1e-8);
  }
  return distances;
}

at::Tensor enlarged(const at::Tensor& maps, int64_t size) {
  return at::upsample_bilinear2d(maps.unsqueeze(1), {size, size}, /*align_corners=*/true).squeeze(1);
}

AnomalyMaps anomaly_maps(const Features& distances, const Manifest& manifest) {
  AnomalyMaps result;
  for (size_t i = 0; i < distances.size(); ++i)
    result.distances[i] = enlarged(distances[i], manifest.image_size);
  result.raw = result.distances[0].to(at::kDouble) + result.distances[1].to(at::kDouble) +
               result.distances[2].to(at::kDouble);
  result.smooth = gaussian_blur(result.raw, manifest.map_sigma, manifest.map_truncate);
  const at::Tensor scores = pooled_maximum(result.smooth, manifest.pool_size, manifest.pool_count).cpu();
  result.scores.assign(scores.const_data_ptr<double>(), scores.const_data_ptr<double>() + scores.numel());
  return result;
}

}  // namespace diad
