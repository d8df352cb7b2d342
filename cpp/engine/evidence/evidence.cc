#include "evidence/evidence.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/tensor.h>

#include "evidence/anomaly_map.h"

namespace diad {

namespace {

constexpr double kSmoothing = 1, kTruncate = 4;  // Gaussian over the positions of a map
// Share of the average spread added at each position, so that positions that hardly vary do not dominate.
constexpr double kAddedShare = 0.3;

// Returns `count` successive average pools of `size`, stride 1, no padding, along one axis as a matrix [S -
// count * (size - 1), S].
at::Tensor pool_matrix(int64_t side, int64_t size, int64_t count) {
  at::Tensor matrix = at::eye(side, at::kDouble);
  for (int64_t i = 0; i < count; ++i) matrix = matrix.unfold(0, size, 1).mean(-1);
  return matrix;
}

at::Tensor from_both_sides(const at::Tensor& matrix, const at::Tensor& maps) {
  return at::matmul(at::matmul(matrix, maps), matrix.t());
}

std::vector<double> maxima(const at::Tensor& maps) {
  const at::Tensor values = maps.amax({1, 2}).cpu();
  return {values.const_data_ptr<double>(), values.const_data_ptr<double>() + values.numel()};
}

}  // namespace

NormalMap normal_map(const at::Tensor& mean, const at::Tensor& spread) {
  const at::Tensor smooth = gaussian_blur(spread, kSmoothing, kTruncate);
  const at::Tensor divisor = smooth + kAddedShare * smooth.mean({-2, -1}, /*keepdim=*/true);
  return {gaussian_blur(mean, kSmoothing, kTruncate).to(at::kFloat),
          divisor.clamp_min(kSmallestDivisor).to(at::kFloat)};
}

EvidenceMaps normalized(const EvidenceMaps& maps, const NormalMaps& normal) {
  EvidenceMaps result;
  for (size_t i = 0; i < maps.size(); ++i) result[i] = (maps[i] - normal.mean[i]) / normal.divisor[i];
  return result;
}

EvidenceCombiner::EvidenceCombiner(const Manifest& manifest, c10::Device device)
    : size_(manifest.image_size), settings_(*manifest.evidence) {
  blur_ = blur_matrix(size_, manifest.map_sigma, manifest.map_truncate).to(device);
  blur_and_pools_ = at::matmul(pool_matrix(size_, manifest.pool_size, manifest.pool_count).to(device), blur_);
}

Evidence EvidenceCombiner::operator()(const EvidenceMaps& normalized,
                                      std::span<const std::string> classes) const {
  const auto map = [&](size_t i) { return enlarged(normalized[i], size_).to(at::kDouble); };
  const auto weights = [&](double EvidenceWeights::* kind) {
    std::vector<double> values;
    for (const std::string& name : classes) values.push_back(settings_.weights_of(name).*kind);
    return at::tensor(values, at::kDouble).view({-1, 1, 1}).to(blur_.device());
  };
  const at::Tensor reconstruction = weights(&EvidenceWeights::reconstruction) * (map(0) + map(1) + map(2));
  const at::Tensor memory = weights(&EvidenceWeights::memory) * map(3);
  Evidence result;
  result.raw = reconstruction + memory;
  result.smooth = from_both_sides(blur_, result.raw);
  const at::Tensor pooled_reconstruction = from_both_sides(blur_and_pools_, reconstruction);
  const at::Tensor pooled_memory = from_both_sides(blur_and_pools_, memory);
  result.scores = maxima(pooled_reconstruction + pooled_memory);
  result.reconstruction = maxima(pooled_reconstruction);
  result.memory = maxima(pooled_memory);
  return result;
}

}  // namespace diad
