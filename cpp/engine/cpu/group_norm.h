// GroupNorm with what stands around it in a residual block, for channels-last float32 or bfloat16 images on
// the CPU: one pass for the statistics, one that normalizes, scales and applies SiLU, where separate
// operators would read and write the image four times.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace diad {

struct GroupNormShape {
  int64_t groups = 32;
  double eps = 1e-5;
  bool silu = false;  // y / (1 + exp(-y)) at the end
};

// Whether a tensor that is added to x [N, C, H, W] has one value a channel, for each image or for all: [N or
// 1, C, 1, 1].
[[nodiscard]] bool is_per_channel(const at::Tensor& shift, const at::Tensor& x);

// x [N, C, H, W]; shift [N or 1, C, 1, 1] is added to x first; weight, bias [C]. What is of other sizes or
// types goes through LibTorch's operators, which also tell what cannot be. Statistics are biased, per image
// and group of C / groups channels, and computed in float32. Result channels last, of x's type.
[[nodiscard]] at::Tensor group_norm(const at::Tensor& x, const std::optional<at::Tensor>& shift,
                                    const at::Tensor& weight, const at::Tensor& bias,
                                    const GroupNormShape& shape);

// The same with one channel to a group, without weights: (x - mean) / sqrt(variance + eps) over each
// channel's pixels.
[[nodiscard]] at::Tensor instance_norm(const at::Tensor& x, double eps, bool silu);

}  // namespace diad
