// Convolution and matrix product of 8-bit integers: weights rounded once, inputs in every call, sums exact.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "cpu/direct_conv.h"
#include "cpu/kernels/int8_kernel.h"

namespace diad {

// Weights are rounded to 127 steps either way, each output channel with a scale of its own. Inputs are
// rounded to 256 steps from their least to their greatest value (0 included): of an image for a convolution,
// of a pixel or row where it is a matrix product.
class QuantizedConv {
 public:
  using Shape = DirectConv::Shape;

  // Whether this machine has the instructions (AVX-512 with VNNI).
  [[nodiscard]] static bool available();

  // Whether a weight [K, C, h, w] is for it: C a multiple of 4, and neither K nor C so small that rounding is
  // felt and nothing saved.
  [[nodiscard]] static bool takes(const at::Tensor& weight);

  // weight [K, C, h, w] float32, bias [K].
  QuantizedConv(const at::Tensor& weight, const std::optional<at::Tensor>& bias, Shape shape);

  // x [N, C, H, W] float32 (any strides) -> [N, K, H', W'] channels last; `residual`, of the output's size or
  // broadcast to it, is added before the relu. Values that are not finite make all of an image's output NaN.
  [[nodiscard]] at::Tensor run(const at::Tensor& x, const std::optional<at::Tensor>& residual,
                               bool relu = false) const;

  // x [..., C] -> [..., K], for a 1 x 1 kernel; `residual` likewise.
  [[nodiscard]] at::Tensor multiply(const at::Tensor& x, const std::optional<at::Tensor>& residual) const;

 private:
  void products(const float* rows, int64_t count, const float* residual, bool relu, float* y) const;
  void compute(kernels::QuantizedArguments& arguments, int64_t pixels) const;

  at::Tensor weights_;        // [ceil(K / 32), h, w, C / 4, 32, 4] signed bytes
  at::Tensor sums_;           // [ceil(K / 32) * 32] int32: of a channel's weights
  at::Tensor scales_, bias_;  // [ceil(K / 32) * 32]
  Shape shape_;
  int64_t out_channels_, channels_, height_, width_;
};

}  // namespace diad
