// The inner loops of DirectConv, compiled once for each instruction set (direct_conv_avx512.cc, direct_conv_avx2.cc).
//
// Nothing of the standard library is used here: a function that these files instantiate with wide instructions could be the copy that the
// linker keeps for everybody.
#pragma once

#include <stdint.h>

namespace diad::kernels {

// Output channels whose weights lie side by side.
constexpr int64_t kBlock = 32;

// What a call computes: y[p][k] = bias[k] + residual[p][k] + sum over runs r and i < run_length of x[p](r, i) w[k / 32][r][i][k % 32].
// A run is a row of the kernel: kernel_w pixels of all channels, which lie side by side in a channels-last picture.
struct ConvArguments {
  const float* x;          // padded, channels last
  int64_t runs;            // kernel_h
  int64_t run_length;      // kernel_w * channels
  int64_t run_stride;      // floats from one row of the padded picture to the next
  int64_t picture_stride;  // floats from one padded picture to the next
  int64_t row_step;        // floats from one output row's first input to the next one's
  int64_t pixel_step;      // floats from one output pixel's first input to the next one's
  int64_t height, width;   // of the output
  const void* weights;     // [ceil(out_channels / 32)][runs][run_length][32], float or IEEE half
  bool half;               // weights are halves
  const float* bias;       // [ceil(out_channels / 32) * 32]
  const float* residual;   // as y, or null
  float* y;                // [pixels][out_channels]
  int64_t out_channels;
  bool relu;
};

// Output pixels first..last-1 (counted over all pictures) of the 32 output channels of a block.
using ConvKernel = void (*)(const ConvArguments& arguments, int64_t block, int64_t first, int64_t last);

void direct_conv_avx512(const ConvArguments& arguments, int64_t block, int64_t first, int64_t last);
void direct_conv_avx2(const ConvArguments& arguments, int64_t block, int64_t first, int64_t last);

// Vector is a set of operations: type, width, load of floats or halves, broadcast, fused multiply-add, add, max, store.
template <typename Vector>
struct DirectConvLoops {
  using V = typename Vector::Type;
  static constexpr int64_t kAhead = 64;                         // steps from asking for a weight to using it, when it comes from memory
  static constexpr int64_t kVectors = kBlock / Vector::kWidth;  // of a block

  template <typename Weight, int kPixels, int kParts>
  static void tile(const ConvArguments& a, const Weight* weights, const float* const* inputs, float* sums) {
    V sum[kPixels][kParts];
    for (int p = 0; p < kPixels; ++p) {
      for (int v = 0; v < kParts; ++v) sum[p][v] = Vector::load(sums + p * kBlock + v * Vector::kWidth);
    }
    for (int64_t run = 0; run < a.runs; ++run) {
      const float* row[kPixels];
      for (int p = 0; p < kPixels; ++p) row[p] = inputs[p] + run * a.run_stride;
      for (int64_t i = 0; i < a.run_length; ++i) {
        Vector::prefetch(weights + kAhead * kBlock);
        V w[kParts];
        for (int v = 0; v < kParts; ++v) w[v] = Vector::load(weights + v * Vector::kWidth);
        for (int p = 0; p < kPixels; ++p) {
          const V value = Vector::broadcast(row[p][i]);
          for (int v = 0; v < kParts; ++v) sum[p][v] = Vector::multiply_add(value, w[v], sum[p][v]);
        }
        weights += kBlock;
      }
    }
    for (int p = 0; p < kPixels; ++p) {
      for (int v = 0; v < kParts; ++v) Vector::store(sums + p * kBlock + v * Vector::kWidth, sum[p][v]);
    }
  }

  template <typename Weight, int kPixels>
  static void pixels(const ConvArguments& a, const Weight* weights, int64_t block, int64_t first) {
    alignas(64) float sums[kPixels * kBlock];
    const float* inputs[kPixels];
    for (int p = 0; p < kPixels; ++p) {
      const int64_t pixel = first + p, picture = pixel / (a.height * a.width), within = pixel % (a.height * a.width);
      inputs[p] = a.x + picture * a.picture_stride + within / a.width * a.row_step + within % a.width * a.pixel_step;
      for (int64_t k = 0; k < kBlock; ++k) sums[p * kBlock + k] = a.bias[block * kBlock + k];
    }
    constexpr int kParts = Vector::kPartsAtOnce;
    for (int v = 0; v < kVectors; v += kParts) {
      tile<Weight, kPixels, kParts>(a, weights + v * Vector::kWidth, inputs, sums + v * Vector::kWidth);
    }
    const int64_t from = block * kBlock, left = a.out_channels - from, count = left < kBlock ? left : kBlock;
    for (int p = 0; p < kPixels; ++p) {
      const int64_t at = (first + p) * a.out_channels + from;
      const float* result = sums + p * kBlock;
      for (int64_t k = 0; k < count; ++k) {
        float value = result[k];
        if (a.residual) value += a.residual[at + k];
        a.y[at + k] = a.relu && value < 0 ? 0 : value;
      }
    }
  }

  template <typename Weight>
  static void block(const ConvArguments& a, int64_t block, int64_t first, int64_t last) {
    const Weight* weights = static_cast<const Weight*>(a.weights) + block * a.runs * a.run_length * kBlock;
    constexpr int kMost = Vector::kPixels;
    for (; first + kMost <= last; first += kMost) pixels<Weight, kMost>(a, weights, block, first);
    for (; first + 2 <= last; first += 2) pixels<Weight, 2>(a, weights, block, first);
    if (first < last) pixels<Weight, 1>(a, weights, block, first);
  }

  static void run(const ConvArguments& a, int64_t index, int64_t first, int64_t last) {
    if (a.half) block<uint16_t>(a, index, first, last);
    else block<float>(a, index, first, last);
  }
};

}  // namespace diad::kernels
