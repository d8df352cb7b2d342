// Nearest-neighbor search in the memory of normal images, by Euclidean distance.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <memory>

#include "cpu/packed_layers.h"

namespace diad {

// Vectors first..last-1 of the memory to ignore: those of the query image itself.
struct LeftOut {
  int64_t first = 0, last = 0;
};

// Vectors packed once for the search. With the custom CPU kernels the product with them is a linear layer
// that runs on the calling thread's pool; otherwise LibTorch computes it. Not thread-safe.
class NearestVectors {
 public:
  // vectors [M, D], half or float32, M > 0.
  NearestVectors(const at::Tensor& vectors, c10::Device device);

  // queries [R, D] float32 on the device -> distances [R] float32; infinite if all vectors are left out.
  [[nodiscard]] at::Tensor distances(const at::Tensor& queries, LeftOut left_out = {});

  [[nodiscard]] int64_t count() const { return count_; }
  [[nodiscard]] int64_t dimensions() const { return dimensions_; }

 private:
  [[nodiscard]] at::Tensor by_layer(const at::Tensor& queries, LeftOut left_out);
  [[nodiscard]] at::Tensor by_product(const at::Tensor& queries, LeftOut left_out) const;

  int64_t count_, dimensions_;
  std::unique_ptr<LinearLayer> layer_;  // null if LibTorch computes the product
  at::Tensor transposed_, bias_;        // [D, M], [M], for LibTorch's product
};

}  // namespace diad
