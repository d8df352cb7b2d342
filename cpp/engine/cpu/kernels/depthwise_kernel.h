// The kernel of DepthwiseLayer, compiled once per instruction set (avx2.cc, avx512.cc). Does not use the
// standard library, see direct_conv_kernel.h.
#pragma once

#include <stdint.h>

namespace diad::kernels {

// Arguments for one channels-last image: y[row][column][c] = clamp(bias[c] + sum over the kernel of x * w,
// low, high). Pixels outside the image are 0.
struct DepthwiseArguments {
  const float* x;        // [height][width][channels]
  const float* weights;  // [kernel][kernel][channels]
  const float* bias;     // [channels]
  float* y;              // [out_height][out_width][channels]
  int64_t height, width, channels, out_width, kernel, stride;
  int64_t before;  // padding at the top and left, pixels
  float low, high;
};

// Computes output rows first..last-1.
using DepthwiseKernel = void (*)(const DepthwiseArguments& arguments, int64_t first, int64_t last);

void depthwise_conv_avx512(const DepthwiseArguments& arguments, int64_t first, int64_t last);
void depthwise_conv_avx2(const DepthwiseArguments& arguments, int64_t first, int64_t last);

template <typename Vector>
struct DepthwiseLoops {
  using V = typename Vector::Type;
  static constexpr int64_t kWidth = Vector::kWidth;
  static constexpr int kAtOnce = 4;  // vectors of channels accumulated in registers

  // Range of kernel positions that lie within the image along one axis.
  struct Range {
    int64_t first, last;
  };

  static Range within(int64_t start, int64_t kernel, int64_t size) {
    const int64_t first = start < 0 ? -start : 0, left = size - start;
    return {first, left < kernel ? left : kernel};
  }

  template <int kVectors, typename Load, typename Store>
  static void channels(const DepthwiseArguments& a, const float* corner, Range rows, Range columns,
                       int64_t channel, float* to, const Load& load, const Store& store) {
    V sum[kVectors];
    for (int v = 0; v < kVectors; ++v) sum[v] = load(a.bias + channel + v * kWidth);
    for (int64_t ky = rows.first; ky < rows.last; ++ky) {
      for (int64_t kx = columns.first; kx < columns.last; ++kx) {
        const float* const x = corner + (ky * a.width + kx) * a.channels + channel;
        const float* const w = a.weights + (ky * a.kernel + kx) * a.channels + channel;
        for (int v = 0; v < kVectors; ++v)
          sum[v] = Vector::multiply_add(load(x + v * kWidth), load(w + v * kWidth), sum[v]);
      }
    }
    const V low = Vector::broadcast(a.low), high = Vector::broadcast(a.high);
    for (int v = 0; v < kVectors; ++v)
      store(to + channel + v * kWidth, Vector::min(high, Vector::max(low, sum[v])));  // keeps NaN
  }

  static void run(const DepthwiseArguments& a, int64_t first, int64_t last) {
    const auto load = [](const float* from) { return Vector::load(from); };
    const auto store = [](float* to, V value) { Vector::store(to, value); };
    for (int64_t row = first; row < last; ++row) {
      const int64_t top = row * a.stride - a.before;
      const Range rows = within(top, a.kernel, a.height);
      for (int64_t column = 0; column < a.out_width; ++column) {
        const int64_t side = column * a.stride - a.before;
        const Range columns = within(side, a.kernel, a.width);
        const float* const corner = a.x + (top * a.width + side) * a.channels;
        float* const to = a.y + (row * a.out_width + column) * a.channels;
        int64_t c = 0;
        for (; c + kAtOnce * kWidth <= a.channels; c += kAtOnce * kWidth)
          channels<kAtOnce>(a, corner, rows, columns, c, to, load, store);
        for (; c + kWidth <= a.channels; c += kWidth)
          channels<1>(a, corner, rows, columns, c, to, load, store);
        if (c == a.channels) continue;
        const int64_t left = a.channels - c;
        channels<1>(
            a, corner, rows, columns, c, to,
            [left](const float* from) { return Vector::load_first(from, left); },
            [left](float* at, V value) { Vector::store_first(at, left, value); });
      }
    }
  }
};

}  // namespace diad::kernels
