// Direct convolution and matrix product for few pixels: no setup per call, and each weight is read once, in
// half precision if that is exact.
#pragma once

#include <ATen/core/Tensor.h>

#include <limits>
#include <optional>

#include "cpu/kernels/direct_conv_kernel.h"

namespace diad {

class DirectConv {
 public:
  struct Shape {
    int64_t stride = 1, padding = 0;
    bool upsampled = false;  // upsamples the input 2x by repetition
  };

  // Returns whether this CPU has the instructions (AVX2 with FMA and F16C, or AVX-512).
  [[nodiscard]] static bool available();

  // weight [K, C, h, w] float32, bias [K]. If all weights are exact in IEEE half precision, as in a bundle
  // stored in float16, they are stored as half and widened in registers: half the memory traffic, identical
  // values.
  DirectConv(const at::Tensor& weight, const std::optional<at::Tensor>& bias, Shape shape);

  // x [N, C, H, W] (any strides) -> [N, K, H', W'], channels-last. `residual`, of the output's size or
  // broadcast to it, is added before the relu.
  [[nodiscard]] at::Tensor run(const at::Tensor& x, const std::optional<at::Tensor>& residual,
                               bool relu = false, float upper = std::numeric_limits<float>::infinity()) const;

  // x [..., C] -> [..., K] for a 1 x 1 kernel; `residual` as in run().
  [[nodiscard]] at::Tensor multiply(const at::Tensor& x, const std::optional<at::Tensor>& residual) const;

  [[nodiscard]] bool half() const { return weights_.scalar_type() == at::kHalf; }

 private:
  void compute(kernels::ConvArguments& arguments, int64_t pixels) const;

  at::Tensor weights_;  // [ceil(K / 32), h, w * C, 32], float or half
  at::Tensor bias_;     // [ceil(K / 32) * 32]
  Shape shape_;
  int64_t out_channels_, channels_, height_, width_;
};

}  // namespace diad
