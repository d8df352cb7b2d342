// Padding and work partitioning shared by DirectConv and QuantizedConv.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "cpu/kernel_dispatch.h"
#include "support/thread_pool.h"

namespace diad {

// Number of blocks of output channels; the last one is padded.
inline int64_t blocks_of(int64_t out_channels) {
  return (out_channels + kernels::kBlock - 1) / kernels::kBlock;
}

// Calls kernel(block, first, last) for every block of output channels and every chunk of kMostPixels pixels,
// which share one pass over the weights. products: multiplications per pixel and channel. speed: speedup over
// floating-point multiplications.
template <typename Kernel>
void in_blocks(int64_t out_channels, int64_t pixels, int64_t products, double speed, const Kernel& kernel) {
  if (pixels == 0) return;
  constexpr int64_t kChunk = kernels::kMostPixels;
  const int64_t blocks = blocks_of(out_channels), chunks = (pixels + kChunk - 1) / kChunk;
  const double work = 2.0 * static_cast<double>(kernels::kBlock * std::min(kChunk, pixels)) *
                      static_cast<double>(products) / speed;
  const auto grain = std::max<int64_t>(1, static_cast<int64_t>(kWorkOfAThread / work));
  parallel_for(blocks * chunks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / chunks, first = task % chunks * kChunk;
      kernel(block, first, std::min(first + kChunk, pixels));
    }
  });
}

// Product of rows [count, depth], `row_stride` floats apart, and packed columns [ceil(out / 32), depth, 32],
// plus bias: y [count, out], rows `y_stride` apart.
struct PlainProduct {
  const float* rows;
  int64_t row_stride, count, depth;
  const float *packed, *bias;
  int64_t out;
  float* y;
  int64_t y_stride;

  [[nodiscard]] kernels::ConvArguments arguments() const {
    kernels::ConvArguments a{};
    a.at.runs = a.at.height = 1;
    a.at.run_length = depth;
    a.at.pixel_step = row_stride;
    a.at.width = count;
    a.x = rows;
    a.weights = packed;
    a.bias = bias;
    a.y = y;
    a.out_channels = out;
    a.y_stride = y_stride;
    return a;
  }
};

// Channels-last images, upsampled `times` times by repetition, then padded by `border` pixels.
struct PaddedImages {
  int64_t images, height, width, channels, border, times;

  [[nodiscard]] int64_t rows() const { return height * times + 2 * border; }
  [[nodiscard]] int64_t columns() const { return width * times + 2 * border; }
  // Tensor sizes; allocating with them checks their product for overflow.
  [[nodiscard]] std::array<int64_t, 4> sizes() const { return {images, rows(), columns(), channels}; }

  // `together`: number of channels multiplied at a time.
  [[nodiscard]] kernels::ConvGeometry geometry(int64_t kernel_height, int64_t kernel_width, int64_t stride,
                                               int64_t together) const {
    const int64_t depth = channels / together;
    return {kernel_height,
            kernel_width * depth,
            columns() * depth,
            rows() * columns() * depth,
            stride * columns() * depth,
            stride * depth,
            (rows() - kernel_height) / stride + 1,
            (columns() - kernel_width) / stride + 1};
  }

  // row_of(image, row, space) returns the values of an unpadded row and can use `space`, a buffer for one
  // row. border_of(image) returns the padding value.
  template <typename T, typename RowOf, typename BorderOf>
  void fill(T* padded, const RowOf& row_of, const BorderOf& border_of) const {
    constexpr int64_t kValuesOfAThread = 1 << 16;
    const int64_t grain = std::max<int64_t>(1, kValuesOfAThread / std::max<int64_t>(1, columns() * channels));
    parallel_for(images * rows(), grain, [&](int64_t begin, int64_t end) {
      std::vector<T> space(static_cast<size_t>(width * channels));
      for (int64_t i = begin; i < end; ++i) {
        const int64_t image = i / rows(), inner = i % rows() - border;
        const T around = border_of(image);
        T* to = padded + i * columns() * channels;
        if (inner < 0 || inner >= height * times) {
          std::fill_n(to, columns() * channels, around);
          continue;
        }
        const T* const from = row_of(image, inner / times, space.data());
        to = std::fill_n(to, border * channels, around);
        if (times == 1) {
          to = std::copy_n(from, width * channels, to);
        } else {
          for (int64_t column = 0; column < width * times; ++column)
            to = std::copy_n(from + column / times * channels, channels, to);
        }
        std::fill_n(to, border * channels, around);
      }
    });
  }
};

}  // namespace diad
