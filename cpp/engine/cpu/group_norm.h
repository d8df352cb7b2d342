// GroupNorm fused with a per-channel addition before it and SiLU after it, for channels-last float32 or
// bfloat16 images on the CPU. One pass computes the statistics and one normalizes, scales and applies SiLU;
// separate operators would read and write the image four times.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace diad {

struct GroupNormShape {
  int64_t groups = 32;
  double eps = 1e-5;
  bool silu = false;  // y / (1 + exp(-y)) at the end
};

// Returns whether `shift` has one value per channel of x [N, C, H, W], per image or for all images: [N or 1,
// C, 1, 1].
[[nodiscard]] bool is_per_channel(const at::Tensor& shift, const at::Tensor& x);

// x [N, C, H, W]; shift [N or 1, C, 1, 1] is added to x first; weight, bias [C]. Other sizes and types fall
// back to LibTorch's operators, which report errors. Statistics are biased, per image and group of C / groups
// channels, and computed in float32. The result is channels-last and has the type of x.
[[nodiscard]] at::Tensor group_norm(const at::Tensor& x, const std::optional<at::Tensor>& shift,
                                    const at::Tensor& weight, const at::Tensor& bias,
                                    const GroupNormShape& shape);

// The same with one channel per group and without weights: (x - mean) / sqrt(variance + eps) over the pixels
// of each channel.
[[nodiscard]] at::Tensor instance_norm(const at::Tensor& x, double eps, bool silu);

}  // namespace diad
