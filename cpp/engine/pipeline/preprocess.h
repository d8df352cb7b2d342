// Preprocessing: 8-bit antialiased bilinear resize, bit-exact with Pillow, and normalization.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "bundle/bundle.h"

namespace diad {

// An 8-bit image with tightly packed rows; channels 1 (gray), 3 (RGB) or 4 (RGBA).
struct Frame {
  std::vector<uint8_t> pixels;
  uint32_t width = 0;
  uint32_t height = 0;
  uint32_t channels = 0;
};

// Drops alpha and replicates gray: [H, W, 1, 3 or 4] -> RGB8 [H, W, 3].
[[nodiscard]] std::vector<uint8_t> to_rgb(const Frame& frame);

// Returns the frame as RGB8 [size, size, 3].
[[nodiscard]] std::vector<uint8_t> resize_frame(const Frame& frame, uint32_t size);

// Resizes RGB8 [height, width, 3] to [size, size, 3] without keeping the aspect ratio, as Pillow's
// Image.resize(BILINEAR) does: two passes with a triangle filter that is widened by the scale when
// downsampling, coefficients in 22-bit fixed point, results rounded to 8 bits. Runs on the thread pool.
[[nodiscard]] std::vector<uint8_t> resize_rgb(std::span<const uint8_t> rgb, uint32_t width, uint32_t height,
                                              uint32_t size);

// Returns the model's input [1, 3, S, S], float32: (value / 255 - mean) / std.
[[nodiscard]] at::Tensor normalized(std::span<const uint8_t> rgb, const Manifest& manifest);

// The same for images [N, S, S, 3], uint8, on any device -> [N, 3, S, S] on that device. Bit-exact with the
// function above.
[[nodiscard]] at::Tensor normalized(const at::Tensor& rgb, const Manifest& manifest);

// Converts an image [3, S, S], float32, CPU from normalized space to RGB8 [S, S, 3]. Clamps, and rounds half
// to even.
[[nodiscard]] std::vector<uint8_t> denormalized(const at::Tensor& image, const Manifest& manifest);

}  // namespace diad
