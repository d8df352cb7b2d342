// The inner loops of DirectConv and QuantisedConv, compiled once for each instruction set (convolutions_*.cc).
//
// Nothing of the standard library is used here: a function that these files instantiate with wide instructions could be the copy that the
// linker keeps for everybody.
#pragma once

#include <stdint.h>

namespace diad::kernels {

// Output channels whose weights lie side by side.
constexpr int64_t kBlock = 32;

// Where an output pixel's inputs lie in a padded picture, channels last. A run is a row of the kernel: kernel_w pixels of all channels,
// which lie side by side. Counted in what is multiplied at a time: a float, or four bytes.
struct ConvGeometry {
  int64_t runs;            // kernel_h
  int64_t run_length;      // kernel_w * channels
  int64_t run_stride;      // from one row of the padded picture to the next
  int64_t picture_stride;  // from one padded picture to the next
  int64_t row_step;        // from one output row's first input to the next one's
  int64_t pixel_step;      // from one output pixel's first input to the next one's
  int64_t height, width;   // of the output
};

// Calls action(p, where the inputs of output pixel first + p begin) for `count` pixels, which are counted over all pictures.
template <typename Action>
static inline void each_pixel(const ConvGeometry& at, int64_t first, int64_t count, const Action& action) {
  const int64_t within = first % (at.height * at.width);
  int64_t row = within / at.width, column = within % at.width;
  int64_t start = first / (at.height * at.width) * at.picture_stride + row * at.row_step;  // of the row
  for (int64_t p = 0; p < count; ++p) {
    action(p, start + column * at.pixel_step);
    if (++column < at.width) continue;
    column = 0;
    start += at.row_step;
    if (++row < at.height) continue;
    row = 0;
    start += at.picture_stride - at.height * at.row_step;
  }
}

// What a call computes: y[p][k] = bias[k] + residual[p][k] + sum over runs r and i < run_length of x[p](r, i) w[k / 32][r][i][k % 32].
struct ConvArguments {
  ConvGeometry at;
  const float* x;
  const void* weights;    // [ceil(out_channels / 32)][runs][run_length][32], float or IEEE half
  bool half;              // weights are halves
  const float* bias;      // [ceil(out_channels / 32) * 32]
  const float* residual;  // as y, or null
  float* y;               // [pixels][out_channels]
  int64_t out_channels;
  bool relu;
};

// Output pixels of a call at most.
constexpr int64_t kMostPixels = 256;

// Output pixels first..last-1 (counted over all pictures; at most kMostPixels) of the 32 output channels of a block.
using ConvKernel = void (*)(const ConvArguments& arguments, int64_t block, int64_t first, int64_t last);

void direct_conv_avx512(const ConvArguments& arguments, int64_t block, int64_t first, int64_t last);
void direct_conv_avx2(const ConvArguments& arguments, int64_t block, int64_t first, int64_t last);

// Weights to bring near while others are in use: every few steps `lines` cache lines, `advance` bytes further than the last time.
struct Upcoming {
  const char* from;
  int64_t lines, advance;
};

// Vector is a set of operations: type, width, load of weights or sums, broadcast of an input, fused multiply-add, store. Scalar: what sums
// and inputs are.
template <typename Vector>
struct ConvLoops {
  using V = typename Vector::Type;
  using Scalar = typename Vector::Scalar;
  static constexpr int64_t kSteps = 4;                          // from one time of asking for weights to the next
  static constexpr int64_t kLine = 64;                          // bytes of a cache line
  static constexpr int64_t kDepth = 256;                        // steps whose weights stay in the first cache while all pixels pass by
  static constexpr int64_t kVectors = kBlock / Vector::kWidth;  // of a block

  // Adds `steps` products to the sums of kPixels pixels, kParts vectors each.
  template <typename Weight, int kPixels, int kParts>
  static void tile(const Weight* weights, const Scalar* const* inputs, int64_t offset, int64_t steps, Scalar* sums, Upcoming& upcoming) {
    V sum[kPixels][kParts];
    const Scalar* row[kPixels];
    for (int p = 0; p < kPixels; ++p) {
      row[p] = inputs[p] + offset;
      for (int v = 0; v < kParts; ++v) sum[p][v] = Vector::load(sums + p * kBlock + v * Vector::kWidth);
    }
    const auto step = [&](int64_t i) {
      V w[kParts];
      for (int v = 0; v < kParts; ++v) w[v] = Vector::load(weights + i * kBlock + v * Vector::kWidth);
      for (int p = 0; p < kPixels; ++p) {
        const V value = Vector::broadcast(row[p][i]);
        for (int v = 0; v < kParts; ++v) sum[p][v] = Vector::multiply_add(value, w[v], sum[p][v]);
      }
    };
    int64_t i = 0;
    for (; i + kSteps <= steps; i += kSteps) {
      for (int64_t line = 0; line < upcoming.lines; ++line) Vector::prefetch(upcoming.from + line * kLine);
      upcoming.from += upcoming.advance;
      for (int64_t j = 0; j < kSteps; ++j) step(i + j);
    }
    for (; i < steps; ++i) step(i);
    for (int p = 0; p < kPixels; ++p) {
      for (int v = 0; v < kParts; ++v) Vector::store(sums + p * kBlock + v * Vector::kWidth, sum[p][v]);
    }
  }

  template <typename Weight, int kPixels, int kUsed>
  static void pixels(const Weight* weights, const Scalar* const* inputs, int64_t offset, int64_t steps, Scalar* sums, Upcoming& upcoming) {
    constexpr int kParts = kUsed < Vector::kPartsAtOnce ? kUsed : Vector::kPartsAtOnce;
    for (int v = 0; v < kUsed; v += kParts) {
      tile<Weight, kPixels, kParts>(weights + v * Vector::kWidth, inputs, offset, steps, sums + v * Vector::kWidth, upcoming);
    }
  }

  // Whether the first half of a block's channels, of which `left` and more are there, is all.
  static bool is_half(int64_t left) { return left <= kBlock / 2; }

  // For the first kUsed vectors of the block. `next` are the weights that come after, `bytes` of them: the passes share in asking for them.
  template <int kUsed, typename Weight>
  static void all_pixels(const Weight* weights, const Scalar* const* inputs, int64_t count, int64_t offset, int64_t steps, Scalar* sums,
                         const void* next, int64_t bytes) {
    constexpr int kMost = Vector::kPixels, kPasses = kUsed < Vector::kPartsAtOnce ? 1 : kUsed / Vector::kPartsAtOnce;
    const int64_t rest = count % kMost, passes = (count / kMost + rest / 2 + rest % 2) * kPasses;
    const int64_t times = passes * (steps / kSteps), advance = times == 0 ? 0 : (bytes + times - 1) / times;
    Upcoming upcoming{static_cast<const char*>(next), (advance + kLine - 1) / kLine, advance};
    int64_t p = 0;
    for (; p + kMost <= count; p += kMost) pixels<Weight, kMost, kUsed>(weights, inputs + p, offset, steps, sums + p * kBlock, upcoming);
    for (; p + 2 <= count; p += 2) pixels<Weight, 2, kUsed>(weights, inputs + p, offset, steps, sums + p * kBlock, upcoming);
    if (p < count) pixels<Weight, 1, kUsed>(weights, inputs + p, offset, steps, sums + p * kBlock, upcoming);
  }
};

template <typename Vector>
struct DirectConvLoops : ConvLoops<Vector> {
  using Loops = ConvLoops<Vector>;
  using Loops::kDepth;

  template <typename Weight>
  static void widen(const Weight* from, int64_t count, float* to) {
    for (int64_t i = 0; i < count; i += Vector::kWidth) Vector::store(to + i, Vector::load(from + i));
  }

  static void finish(const ConvArguments& a, int64_t block, int64_t first, int64_t count, const float* sums) {
    const int64_t from = block * kBlock, left = a.out_channels - from, filled = left < kBlock ? left : kBlock;
    const int64_t whole = filled / Vector::kWidth * Vector::kWidth, rest = filled - whole;
    const auto zero = Vector::broadcast(0);
    for (int64_t p = 0; p < count; ++p, sums += kBlock) {
      const int64_t at = (first + p) * a.out_channels + from;
      float* const y = a.y + at;
      const float* const residual = a.residual ? a.residual + at : nullptr;
      for (int64_t k = 0; k < whole; k += Vector::kWidth) {
        auto value = Vector::load(sums + k);
        if (residual) value = Vector::add(value, Vector::load(residual + k));
        Vector::store(y + k, a.relu ? Vector::max(zero, value) : value);  // a NaN stays one
      }
      if (rest == 0) continue;
      auto value = Vector::load(sums + whole);
      if (residual) value = Vector::add(value, Vector::load_first(residual + whole, rest));
      Vector::store_first(y + whole, rest, a.relu ? Vector::max(zero, value) : value);
    }
  }

  template <typename Weight, int kUsed>
  static void block(const ConvArguments& a, int64_t block, int64_t first, int64_t last) {
    alignas(64) float sums[kMostPixels * kBlock];
    const float* inputs[kMostPixels];
    const int64_t count = last - first;
    each_pixel(a.at, first, count, [&](int64_t p, int64_t start) {
      inputs[p] = a.x + start;
      for (int64_t k = 0; k < kBlock; k += Vector::kWidth) Vector::store(sums + p * kBlock + k, Vector::load(a.bias + block * kBlock + k));
    });
    const Weight* weights = static_cast<const Weight*>(a.weights) + block * a.at.runs * a.at.run_length * kBlock;
    for (int64_t run = 0; run < a.at.runs; ++run) {
      for (int64_t i = 0; i < a.at.run_length; i += kDepth) {
        const int64_t steps = a.at.run_length - i < kDepth ? a.at.run_length - i : kDepth, offset = run * a.at.run_stride + i;
        const Weight* const next = weights + steps * kBlock;
        const int64_t bytes = steps * kBlock * static_cast<int64_t>(sizeof(Weight));
        // Widening takes the place of multiplications: for more than a few tiles it is done once, beforehand.
        if (sizeof(Weight) < sizeof(float) && count >= 4 * Vector::kPixels) {
          alignas(64) float widened[kDepth * kBlock];
          widen(weights, steps * kBlock, widened);
          Loops::template all_pixels<kUsed>(widened, inputs, count, offset, steps, sums, next, bytes);
        } else {
          Loops::template all_pixels<kUsed>(weights, inputs, count, offset, steps, sums, next, bytes);
        }
        weights += steps * kBlock;
      }
    }
    finish(a, block, first, count, sums);
  }

  template <int kUsed>
  static void in_weights_type(const ConvArguments& a, int64_t index, int64_t first, int64_t last) {
    if (a.half) block<uint16_t, kUsed>(a, index, first, last);
    else block<float, kUsed>(a, index, first, last);
  }

  static void run(const ConvArguments& a, int64_t index, int64_t first, int64_t last) {
    if (Loops::is_half(a.out_channels - index * kBlock)) in_weights_type<Loops::kVectors / 2>(a, index, first, last);
    else in_weights_type<Loops::kVectors>(a, index, first, last);
  }
};

}  // namespace diad::kernels
