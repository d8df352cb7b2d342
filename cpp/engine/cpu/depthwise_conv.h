// Depthwise convolution fused with padding and clamp, for EfficientNet-Lite (models/efficientnet_lite.py).
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/custom_class.h>

#include <array>
#include <limits>
#include <optional>

namespace diad {

// Applies a square kernel per channel. Custom kernels compute float32 on CPUs with AVX2 or AVX-512; LibTorch
// computes everything else. A TorchScript custom class, so that a frozen graph can hold it as a constant
// (cpu/cpu_graph_passes.h).
class DepthwiseLayer final : public torch::CustomClassHolder {
 public:
  struct Shape {
    int64_t stride = 1;
    int64_t before = 0, after = 0;  // zero padding in pixels: top and left, bottom and right
    float low = -std::numeric_limits<float>::infinity(),
          high = std::numeric_limits<float>::infinity();  // clamp of the result
  };

  // weight [C, 1, k, k], bias [C].
  DepthwiseLayer(at::Tensor weight, std::optional<at::Tensor> bias, Shape shape);

  // x [N, C, H, W] (any strides) -> [N, C, H', W'], channels-last. Throws c10::Error if x does not match the
  // weight.
  at::Tensor run(const at::Tensor& x) const;

  // Returns the implementation: "depthwise" or "LibTorch".
  [[nodiscard]] const char* kernel() const { return packed_.defined() ? "depthwise" : "LibTorch"; }

 private:
  [[nodiscard]] at::Tensor by_libtorch(const at::Tensor& x) const;

  at::Tensor weight_;
  std::optional<at::Tensor> bias_;
  Shape shape_;
  at::Tensor packed_, packed_bias_;  // [k, k, C] and [C], float32; undefined for LibTorch
};

}  // namespace diad
