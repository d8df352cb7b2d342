#include "evidence/coreset.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/randn.h>

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>

#include "support/cancellation.h"

namespace diad {

namespace {

constexpr int64_t kProjectedDimensions = 32;
constexpr uint64_t kProjectionSeed = 0;
constexpr int64_t kSelectedPerCheck = 64;

at::Tensor projected(const at::Tensor& vectors) {
  const int64_t dimensions = vectors.size(1);
  if (dimensions <= kProjectedDimensions) return vectors;
  const at::Generator generator = at::detail::createCPUGenerator(kProjectionSeed);
  return at::matmul(vectors, at::randn({dimensions, kProjectedDimensions}, generator, at::kFloat));
}

// Squared distances of all points to the selected ones. The points are stored by dimension, [D, N], so that
// the inner loop runs over contiguous points.
class Distances {
 public:
  explicit Distances(const at::Tensor& points)
      : points_(points.t().contiguous()),
        nearest_(static_cast<size_t>(points.size(0)), std::numeric_limits<float>::infinity()) {}

  // Adds a point to the selected ones and returns the point that is now farthest.
  int64_t select(int64_t point) {
    const auto count = static_cast<int64_t>(nearest_.size()), dimensions = points_.size(0);
    const auto* const values = points_.const_data_ptr<float>();
    std::array<float, kBlock> squared;
    for (int64_t first = 0; first < count; first += kBlock) {
      const int64_t some = std::min(kBlock, count - first);
      squared.fill(0);
      for (int64_t k = 0; k < dimensions; ++k) {
        const float* const row = values + k * count + first;
        const float selected = values[k * count + point];
        for (int64_t i = 0; i < some; ++i) {
          squared[static_cast<size_t>(i)] += (row[i] - selected) * (row[i] - selected);
        }
      }
      for (int64_t i = 0; i < some; ++i) {
        float& nearest = nearest_[static_cast<size_t>(first + i)];
        nearest = std::min(nearest, squared[static_cast<size_t>(i)]);
      }
    }
    nearest_[static_cast<size_t>(point)] = -1;  // below every distance: not selected again
    return std::ranges::max_element(nearest_) - nearest_.begin();
  }

 private:
  static constexpr int64_t kBlock = 256;

  at::Tensor points_;
  std::vector<float> nearest_;
};

}  // namespace

std::vector<int64_t> coreset(const at::Tensor& vectors, int64_t count) {
  const int64_t available = vectors.size(0);
  if (count >= available) {
    std::vector<int64_t> all(static_cast<size_t>(available));
    std::iota(all.begin(), all.end(), 0);
    return all;
  }
  Distances distances(projected(vectors));
  std::vector<int64_t> selected;
  for (int64_t next = 0; static_cast<int64_t>(selected.size()) < count;) {
    if (selected.size() % kSelectedPerCheck == 0) check_cancelled();
    selected.push_back(next);
    next = distances.select(next);
  }
  return selected;
}

}  // namespace diad
