// Euclidean distances to the nearest of many vectors: the search in the memory of normal images.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <memory>

#include "cpu/packed_layers.h"

namespace diad {

// Vectors first..last-1 of a memory that do not count: those of the image that is searched for.
struct LeftOut {
  int64_t first = 0, last = 0;
};

// Vectors laid out for the search once. On a CPU with the engine's own kernels the product with them is a
// linear layer, so that the search shares the thread pool of the calling thread; elsewhere it is LibTorch's.
// Not for several threads at a time.
class NearestVectors {
 public:
  // vectors [M, D], half or float32, M > 0.
  NearestVectors(const at::Tensor& vectors, c10::Device device);

  // queries [R, D] float32 on the device -> [R] float32; infinite where all are left out.
  [[nodiscard]] at::Tensor distances(const at::Tensor& queries, LeftOut left_out = {});

  [[nodiscard]] int64_t count() const { return count_; }
  [[nodiscard]] int64_t dimensions() const { return dimensions_; }

 private:
  [[nodiscard]] at::Tensor by_layer(const at::Tensor& queries, LeftOut left_out);
  [[nodiscard]] at::Tensor by_product(const at::Tensor& queries, LeftOut left_out) const;

  int64_t count_, dimensions_;
  std::unique_ptr<LinearLayer> layer_;  // null where LibTorch multiplies
  at::Tensor transposed_, bias_;        // [D, M], [M], for LibTorch's product
};

}  // namespace diad
