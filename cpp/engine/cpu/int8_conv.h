// Convolution and matrix product in 8-bit integers: weights are quantized once, inputs per call, sums are
// exact.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "cpu/direct_conv.h"
#include "cpu/kernels/int8_kernel.h"

namespace diad {

// Weights are quantized symmetrically to 127 steps per sign, with one scale per output channel. Inputs are
// quantized to 256 steps from their minimum to their maximum (including 0): per image for convolutions, per
// pixel or row for matrix products.
class QuantizedConv {
 public:
  using Shape = DirectConv::Shape;

  // Returns whether this CPU has the instructions (AVX-512 with VNNI).
  [[nodiscard]] static bool available();

  // Returns whether a weight [K, C, h, w] is supported: C is a multiple of 4, and K and C are large enough
  // for quantization to save time at little loss of accuracy.
  [[nodiscard]] static bool takes(const at::Tensor& weight);

  // weight [K, C, h, w] float32, bias [K].
  QuantizedConv(const at::Tensor& weight, const std::optional<at::Tensor>& bias, Shape shape);

  // x [N, C, H, W] float32 (any strides) -> [N, K, H', W'], channels-last. `residual`, of the output's size
  // or broadcast to it, is added before the relu. If an image has non-finite values, its whole output is NaN.
  [[nodiscard]] at::Tensor run(const at::Tensor& x, const std::optional<at::Tensor>& residual,
                               bool relu = false) const;

  // x [..., C] -> [..., K] for a 1 x 1 kernel; `residual` as in run().
  [[nodiscard]] at::Tensor multiply(const at::Tensor& x, const std::optional<at::Tensor>& residual) const;

 private:
  void products(const float* rows, int64_t count, const float* residual, bool relu, float* y) const;
  void compute(kernels::QuantizedArguments& arguments, int64_t pixels) const;

  at::Tensor weights_;        // [ceil(K / 32), h, w, C / 4, 32, 4] signed bytes
  at::Tensor sums_;           // [ceil(K / 32) * 32] int32: sum of a channel's weights
  at::Tensor scales_, bias_;  // [ceil(K / 32) * 32]
  Shape shape_;
  int64_t out_channels_, channels_, height_, width_;
};

}  // namespace diad
