// The transforms of WinogradConv, compiled once per instruction set (avx512.cc, avx2.cc).
//
// Matrices: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016), section 4, for 3 x 3
// kernels and tiles of 2 x 2 and 4 x 4 output pixels. Does not use the standard library, see
// direct_conv_kernel.h.
#pragma once

#include <stdint.h>

#include "cpu/kernels/direct_conv_kernel.h"

namespace diad::kernels {

// Side length of a tile's input for `Out` output pixels per side.
template <int Out>
constexpr int kWinogradIn = Out + 2;

// G g G^T for the taps of one block of output channels: taps [channels, 9, kBlock]. Position p, [channels,
// kBlock], is written to transformed + p * position_stride.
using WinogradWeights = void (*)(const float* taps, int64_t channels, float* transformed,
                                 int64_t position_stride);

// B^T d B: `pixels` [in * in] are the input pixels of the tile, row by row, with `channels` floats each.
// Position p is written to transformed + p * position_stride.
using WinogradInput = void (*)(const float* const* pixels, int64_t channels, float* transformed,
                               int64_t position_stride);

// A^T m A + bias + residual: position p is read from products + p * position_stride. y [out * out] are the
// output pixels of the tile, null outside the image; residual has the same layout, or is null for none.
struct WinogradOutputArguments {
  const float* products;
  int64_t position_stride, channels;
  const float* bias;
  const float* const* residual;
  float* const* y;
  bool relu;
};
using WinogradOutput = void (*)(const WinogradOutputArguments& arguments);

struct WinogradKernels {
  WinogradWeights weights2, weights4;
  WinogradInput input2, input4;
  WinogradOutput output2, output4;
};

extern const WinogradKernels winograd_avx512, winograd_avx2;

// One-dimensional transforms of a line of vectors.
template <typename Vector, int Out>
struct WinogradLine;

template <typename Vector>
struct WinogradLine<Vector, 2> {
  using V = typename Vector::Type;
  static void weights(const V (&g)[3], V (&to)[4]) {
    const V half = Vector::broadcast(.5F);
    const V even = Vector::multiply(half, Vector::add(g[0], g[2])), odd = Vector::multiply(half, g[1]);
    to[0] = g[0];
    to[1] = Vector::add(even, odd);
    to[2] = Vector::subtract(even, odd);
    to[3] = g[2];
  }
  static void input(const V (&d)[4], V (&to)[4]) {
    to[0] = Vector::subtract(d[0], d[2]);
    to[1] = Vector::add(d[1], d[2]);
    to[2] = Vector::subtract(d[2], d[1]);
    to[3] = Vector::subtract(d[1], d[3]);
  }
  static void output(const V (&m)[4], V (&to)[2]) {
    to[0] = Vector::add(Vector::add(m[0], m[1]), m[2]);
    to[1] = Vector::subtract(Vector::subtract(m[1], m[2]), m[3]);
  }
};

template <typename Vector>
struct WinogradLine<Vector, 4> {
  using V = typename Vector::Type;
  static void weights(const V (&g)[3], V (&to)[6]) {
    const V sixth = Vector::broadcast(1.F / 6), twelfth = Vector::broadcast(1.F / 12),
            twenty_fourth = Vector::broadcast(1.F / 24);
    const V near = Vector::multiply(Vector::broadcast(-1.F / 6), Vector::add(g[0], g[2])),
            near_odd = Vector::multiply(sixth, g[1]);
    const V far = Vector::multiply_add(sixth, g[2], Vector::multiply(twenty_fourth, g[0])),
            far_odd = Vector::multiply(twelfth, g[1]);
    to[0] = Vector::multiply(Vector::broadcast(.25F), g[0]);
    to[1] = Vector::subtract(near, near_odd);
    to[2] = Vector::add(near, near_odd);
    to[3] = Vector::add(far, far_odd);
    to[4] = Vector::subtract(far, far_odd);
    to[5] = g[2];
  }
  static void input(const V (&d)[6], V (&to)[6]) {
    const V two = Vector::broadcast(2), four = Vector::broadcast(4), five = Vector::broadcast(5);
    const V even = Vector::negative_multiply_add(four, d[2], d[4]),
            odd = Vector::negative_multiply_add(four, d[1], d[3]);
    const V far = Vector::subtract(d[4], d[2]), near = Vector::multiply(two, Vector::subtract(d[3], d[1]));
    to[0] = Vector::multiply_add(four, d[0], Vector::negative_multiply_add(five, d[2], d[4]));
    to[1] = Vector::add(even, odd);
    to[2] = Vector::subtract(even, odd);
    to[3] = Vector::add(far, near);
    to[4] = Vector::subtract(far, near);
    to[5] = Vector::multiply_add(four, d[1], Vector::negative_multiply_add(five, d[3], d[5]));
  }
  static void output(const V (&m)[6], V (&to)[4]) {
    const V two = Vector::broadcast(2), four = Vector::broadcast(4), eight = Vector::broadcast(8);
    const V near = Vector::add(m[1], m[2]), near_odd = Vector::subtract(m[1], m[2]);
    const V far = Vector::add(m[3], m[4]), far_odd = Vector::subtract(m[3], m[4]);
    to[0] = Vector::add(m[0], Vector::add(near, far));
    to[1] = Vector::multiply_add(two, far_odd, near_odd);
    to[2] = Vector::multiply_add(four, far, near);
    to[3] = Vector::multiply_add(eight, far_odd, Vector::add(near_odd, m[5]));
  }
};

template <typename Vector, int Out>
struct WinogradTransforms {
  using V = typename Vector::Type;
  using Line = WinogradLine<Vector, Out>;
  static constexpr int kIn = kWinogradIn<Out>;

  static void weights(const float* taps, int64_t channels, float* transformed, int64_t position_stride) {
    for (int64_t at = 0; at < channels * kBlock; at += Vector::kWidth) {
      const float* const from = taps + at / kBlock * 9 * kBlock + at % kBlock;
      V half[3][kIn];  // [row][transformed column]
      for (int row = 0; row < 3; ++row) {
        V line[3];
        for (int column = 0; column < 3; ++column)
          line[column] = Vector::load(from + (row * 3 + column) * kBlock);
        Line::weights(line, half[row]);
      }
      for (int column = 0; column < kIn; ++column) {
        V line[3], done[kIn];
        for (int row = 0; row < 3; ++row) line[row] = half[row][column];
        Line::weights(line, done);
        for (int row = 0; row < kIn; ++row)
          Vector::store(transformed + (row * kIn + column) * position_stride + at, done[row]);
      }
    }
  }

  static void input(const float* const* pixels, int64_t channels, float* transformed,
                    int64_t position_stride) {
    for (int64_t c = 0; c < channels; c += Vector::kWidth) {
      V half[kIn][kIn];  // [row][transformed column]
      for (int row = 0; row < kIn; ++row) {
        V line[kIn];
        for (int column = 0; column < kIn; ++column)
          line[column] = Vector::load(pixels[row * kIn + column] + c);
        Line::input(line, half[row]);
      }
      for (int column = 0; column < kIn; ++column) {
        V line[kIn], done[kIn];
        for (int row = 0; row < kIn; ++row) line[row] = half[row][column];
        Line::input(line, done);
        for (int row = 0; row < kIn; ++row)
          Vector::store(transformed + (row * kIn + column) * position_stride + c, done[row]);
      }
    }
  }

  static void output(const WinogradOutputArguments& a) {
    const V zero = Vector::broadcast(0);
    for (int64_t k = 0; k < a.channels; k += Vector::kWidth) {
      V half[kIn][Out];
      for (int row = 0; row < kIn; ++row) {
        V line[kIn];
        for (int column = 0; column < kIn; ++column)
          line[column] = Vector::load(a.products + (row * kIn + column) * a.position_stride + k);
        Line::output(line, half[row]);
      }
      const V bias = Vector::load(a.bias + k);
      for (int column = 0; column < Out; ++column) {
        V line[kIn], done[Out];
        for (int row = 0; row < kIn; ++row) line[row] = half[row][column];
        Line::output(line, done);
        for (int row = 0; row < Out; ++row) {
          const int at = row * Out + column;
          if (!a.y[at]) continue;
          V value = Vector::add(done[row], bias);
          if (a.residual) value = Vector::add(value, Vector::load(a.residual[at] + k));
          Vector::store(a.y[at] + k, a.relu ? Vector::max(zero, value) : value);
        }
      }
    }
  }
};

template <typename Vector>
constexpr WinogradKernels winograd_kernels() {
  using Two = WinogradTransforms<Vector, 2>;
  using Four = WinogradTransforms<Vector, 4>;
  return {Two::weights, Four::weights, Two::input, Four::input, Two::output, Four::output};
}

}  // namespace diad::kernels
