// From pixels to the model's input: Pillow's antialiased bilinear resize on 8 bits, to the byte, and the
// normalization.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "bundle/bundle.h"

namespace diad {

// An 8-bit image, rows without gaps; channels 1 (gray), 3 (RGB) or 4 (RGBA).
struct Frame {
  std::vector<uint8_t> pixels;
  uint32_t width = 0;
  uint32_t height = 0;
  uint32_t channels = 0;
};

// Drops alpha, repeats gray: [H, W, 1|4] -> RGB8 [H, W, 3].
[[nodiscard]] std::vector<uint8_t> to_rgb(const Frame& frame);

// The frame as RGB8 [size, size, 3].
[[nodiscard]] std::vector<uint8_t> resize_frame(const Frame& frame, uint32_t size);

// Resizes RGB8 [height, width, 3] to [size, size, 3], aspect ignored, as Pillow's Image.resize(BILINEAR)
// does: two passes, each with the triangle filter widened by the scale when shrinking, coefficients in 22-bit
// fixed point, results rounded to 8 bits. ThreadPool share in it.
[[nodiscard]] std::vector<uint8_t> resize_rgb(std::span<const uint8_t> rgb, uint32_t width, uint32_t height,
                                              uint32_t size);

// The model's input [1, 3, S, S], float32: (value / 255 - mean) / std.
[[nodiscard]] at::Tensor normalized(std::span<const uint8_t> rgb, const Manifest& manifest);

// The same for images [N, S, S, 3], uint8, on any device: to the bit what the above gives -> [N, 3, S, S]
// there.
[[nodiscard]] at::Tensor normalized(const at::Tensor& rgb, const Manifest& manifest);

// An image from the normalized space [3, S, S] float32, CPU -> RGB8 [S, S, 3], clamped and rounded to even
// halves.
[[nodiscard]] std::vector<uint8_t> denormalized(const at::Tensor& image, const Manifest& manifest);

}  // namespace diad
