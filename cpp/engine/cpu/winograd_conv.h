// 3 x 3 convolution with fewer multiplications (Winograd's minimal filtering), for images with many pixels.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace diad {

// Tiles of m x m output pixels need (m + 2)^2 products per channel pair instead of 9 m^2: 2.25 times fewer
// for m = 2, 4 times fewer for m = 4. The weights grow by (m + 2)^2 / 9 unless they are transformed in every
// run. Stride 1, padding 1, dilation 1.
class WinogradConv {
 public:
  // Returns whether this CPU has the instructions and both channel counts are multiples of 16.
  [[nodiscard]] static bool available(const at::Tensor& weight);

  struct Shape {
    int64_t tile = 4;        // m: 2 or 4
    bool upsampled = false;  // upsamples the input 2x by repetition
    bool stored = true;      // keeps the transformed weights instead of the original ones
  };

  // weight [K, C, 3, 3] float32, bias [K].
  WinogradConv(const at::Tensor& weight, const std::optional<at::Tensor>& bias, Shape shape);

  // x [N, C, H, W] (any strides) -> [N, K, H, W] (twice H and W if upsampled), channels-last. `residual`, of
  // the output's size or broadcast to it, is added before the relu.
  [[nodiscard]] at::Tensor run(const at::Tensor& x, const std::optional<at::Tensor>& residual,
                               bool relu = false) const;

  [[nodiscard]] int64_t tile() const { return shape_.tile; }

 private:
  // taps [ceil(K / 32), C, 9, 32] -> [(m + 2)^2, ceil(K / 32), C, 32], allocated by `allocator`.
  [[nodiscard]] at::Tensor transform(const at::Tensor& taps, c10::Allocator* allocator) const;

  at::Tensor weights_;  // transformed if `stored`, otherwise taps
  at::Tensor bias_;     // [K]
  Shape shape_;
  int64_t out_channels_, channels_;
};

}  // namespace diad
