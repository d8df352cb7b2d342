#include "evidence/nearest_vectors.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/direct_conv.h"
#include "support/cancellation.h"
#include "support/thread_pool.h"

namespace diad {

namespace {

// Floats of a partial product on the CPU: 1 MiB stays in a core's cache until the maxima are taken.
constexpr int64_t kCachedFloats = 1 << 18;
// Floats of a partial product on an accelerator: 256 MiB.
constexpr int64_t kDeviceFloats = 1 << 26;
constexpr int64_t kRowsOfAThread = 8;

constexpr float kNone = -std::numeric_limits<float>::infinity();

// Maximum of values[first..last-1], or kNone if empty. Computed in lanes so that the compiler vectorizes it.
float largest(const float* values, int64_t first, int64_t last) {
  constexpr int64_t kLanes = 16;
  std::array<float, kLanes> lanes;
  lanes.fill(kNone);
  int64_t i = first;
  for (; i + kLanes <= last; i += kLanes) {
    for (int64_t k = 0; k < kLanes; ++k) {
      const float value = values[i + k], known = lanes[static_cast<size_t>(k)];
      lanes[static_cast<size_t>(k)] = value > known ? value : known;
    }
  }
  float result = *std::ranges::max_element(lanes);
  for (; i < last; ++i) result = std::max(result, values[i]);
  return result;
}

// Square root of |q|^2 - 2 max(q . m - |m|^2 / 2), clamped at 0. Keeps NaN, which std::max would turn into 0.
float distance_of(const float* query, int64_t dimensions, float best) {
  double squared = 0;
  for (int64_t i = 0; i < dimensions; ++i) squared += static_cast<double>(query[i]) * query[i];
  squared -= 2.0 * best;
  return static_cast<float>(std::sqrt(squared < 0 ? 0 : squared));
}

}  // namespace

NearestVectors::NearestVectors(const at::Tensor& vectors, c10::Device device)
    : count_(vectors.size(0)), dimensions_(vectors.size(1)) {
  const at::Tensor weight = vectors.to(device, at::kFloat).contiguous();
  const at::Tensor bias = weight.to(at::kDouble).square().sum(1).mul(-0.5).to(at::kFloat);
  if (device.is_cpu() && DirectConv::available()) {
    layer_ = std::make_unique<LinearLayer>(weight, bias);
  } else {
    transposed_ = weight.t();
    bias_ = bias;
  }
}

at::Tensor NearestVectors::distances(const at::Tensor& queries, LeftOut left_out) {
  const at::Tensor rows = queries.contiguous();
  return layer_ ? by_layer(rows, left_out) : by_product(rows, left_out);
}

at::Tensor NearestVectors::by_layer(const at::Tensor& queries, LeftOut left_out) {
  const int64_t rows = queries.size(0), step = std::clamp<int64_t>(kCachedFloats / count_, 16, 256);
  at::Tensor result = at::empty({rows}, at::kFloat);
  const auto* const query = queries.const_data_ptr<float>();
  auto* const distance = result.mutable_data_ptr<float>();
  for (int64_t first = 0; first < rows; first += step) {
    check_cancelled();
    const int64_t some = std::min(step, rows - first);
    const at::Tensor product = layer_->run(queries.narrow(0, first, some), std::nullopt);  // [some, M]
    const auto* const values = product.const_data_ptr<float>();
    parallel_for(some, kRowsOfAThread, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const float* const row = values + i * count_;
        const float best = std::max(largest(row, 0, left_out.first), largest(row, left_out.last, count_));
        distance[first + i] = distance_of(query + (first + i) * dimensions_, dimensions_, best);
      }
    });
  }
  return result;
}

at::Tensor NearestVectors::by_product(const at::Tensor& queries, LeftOut left_out) const {
  const int64_t at_once = queries.is_cpu() ? kCachedFloats : kDeviceFloats;
  std::vector<at::Tensor> results;
  for (const at::Tensor& some : queries.split(std::max<int64_t>(16, at_once / count_))) {
    check_cancelled();
    at::Tensor product = at::addmm(bias_, some, transposed_);  // [some, M]
    product.narrow(1, left_out.first, left_out.last - left_out.first).fill_(kNone);
    const at::Tensor squared = some.square().sum(1) - 2 * product.amax(1);
    results.push_back(squared.clamp_min(0).sqrt());
  }
  return results.empty() ? at::empty({0}, queries.options()) : at::cat(results);
}

}  // namespace diad
