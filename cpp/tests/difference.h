// How far two tensors are apart.
#pragma once

#include <ATen/TensorOperators.h>
#include <doctest/doctest.h>

// The largest absolute difference, in double; the sizes must be equal.
inline double difference(const at::Tensor& a, const at::Tensor& b) {
  REQUIRE(a.sizes() == b.sizes());
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}
