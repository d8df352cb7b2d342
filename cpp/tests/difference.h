// Difference between two tensors.
#pragma once

#include <ATen/TensorOperators.h>
#include <doctest/doctest.h>

// Returns the largest absolute difference, computed in double. Requires equal sizes.
inline double difference(const at::Tensor& a, const at::Tensor& b) {
  REQUIRE(a.sizes() == b.sizes());
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}
