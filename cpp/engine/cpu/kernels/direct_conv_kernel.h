// The kernels of DirectConv and QuantizedConv, compiled once per instruction set (avx2.cc, avx512.cc).
//
// Does not use the standard library: the linker might keep the instance of a shared inline function that was
// compiled here, with wide instructions, for all callers.
#pragma once

#include <stdint.h>

// Precedes a loop over registers, which must be unrolled to stay in registers.
#if defined(__GNUC__)
#define DIAD_UNROLLED _Pragma("GCC unroll 8")
#else
#define DIAD_UNROLLED
#endif

namespace diad::kernels {

// Output channels whose weights are stored contiguously.
constexpr int64_t kBlock = 32;

// Positions of an output pixel's inputs in a padded channels-last image. A run is a row of the kernel:
// kernel_w contiguous pixels with all channels. The unit is what is multiplied at a time: one float, or four
// bytes.
struct ConvGeometry {
  int64_t runs;           // kernel_h
  int64_t run_length;     // kernel_w * channels
  int64_t run_stride;     // from one row of the padded image to the next
  int64_t image_stride;   // from one padded image to the next
  int64_t row_step;       // between the first inputs of consecutive output rows
  int64_t pixel_step;     // between the first inputs of consecutive output pixels
  int64_t height, width;  // of the output
};

// Calls action(p, offset of the first input of output pixel first + p) for `count` pixels, counted over all
// images.
template <typename Action>
static inline void each_pixel(const ConvGeometry& at, int64_t first, int64_t count, const Action& action) {
  const int64_t within = first % (at.height * at.width);
  int64_t row = within / at.width, column = within % at.width;
  int64_t start = first / (at.height * at.width) * at.image_stride + row * at.row_step;  // of the row
  for (int64_t p = 0; p < count; ++p) {
    action(p, start + column * at.pixel_step);
    if (++column < at.width) continue;
    column = 0;
    start += at.row_step;
    if (++row < at.height) continue;
    row = 0;
    start += at.image_stride - at.height * at.row_step;
  }
}

// Arguments of a call, which computes y[p][k] = bias[k] + residual[p][k] + sum over runs r and i < run_length
// of x[p](r, i) w[k / 32][r][i][k % 32].
struct ConvArguments {
  ConvGeometry at;
  const float* x;
  const void* weights;    // [ceil(out_channels / 32)][runs][run_length][32], float or IEEE half
  bool half;              // weights are half precision
  const float* bias;      // [ceil(out_channels / 32) * 32]
  const float* residual;  // as y, or null
  float* y;               // [pixels][out_channels], pixels y_stride floats apart
  int64_t out_channels, y_stride;
  bool relu;    // clamps y to 0..upper
  float upper;  // infinity: no upper bound
};

// Maximum number of output pixels per call.
constexpr int64_t kMostPixels = 256;

// Computes output pixels first..last-1 (counted over all images, at most kMostPixels) of the 32 output
// channels of a block.
using ConvKernel = void (*)(const ConvArguments& arguments, int64_t block, int64_t first, int64_t last);

void direct_conv_avx512(const ConvArguments& arguments, int64_t block, int64_t first, int64_t last);
void direct_conv_avx2(const ConvArguments& arguments, int64_t block, int64_t first, int64_t last);

// Weights to prefetch: every few steps `lines` cache lines, advancing by `advance` bytes each time.
struct Upcoming {
  const char* from;
  int64_t lines, advance;
};

// Vector is a set of operations: type, width, load of weights or sums, broadcast of an input, fused
// multiply-add, store. Scalar is the type of sums and inputs.
template <typename Vector>
struct ConvLoops {
  using V = typename Vector::Type;
  using Scalar = typename Vector::Scalar;
  static constexpr int64_t kSteps = 4;  // between prefetches of weights
  static constexpr int64_t kLine = 64;  // bytes of a cache line
  // Steps whose weights stay in the L1 cache while all pixels are processed.
  static constexpr int64_t kDepth = 256;
  static constexpr int64_t kVectors = kBlock / Vector::kWidth;  // per block

  // Adds `steps` products to the sums of kPixels pixels starting at `first`, for kParts vectors starting at
  // `part`. Ends defines where sums are loaded from and stored to, and what is prefetched.
  template <typename Weight, int kPixels, int kParts, typename Ends>
  static void tile(const Weight* weights, const Scalar* const* inputs, int64_t offset, int64_t steps,
                   const Ends& ends, int64_t first, int part, Upcoming& upcoming) {
    V sum[kPixels][kParts];
    const Scalar* row[kPixels];
    for (int p = 0; p < kPixels; ++p) {
      row[p] = inputs[first + p] + offset;
      for (int v = 0; v < kParts; ++v) sum[p][v] = ends.begin(first + p, part + v);
    }
    const auto step = [&](int64_t i) {
      V w[kParts];
      for (int v = 0; v < kParts; ++v)
        w[v] = Vector::load(weights + i * kBlock + (part + v) * Vector::kWidth);
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
    DIAD_UNROLLED
    for (int p = 0; p < kPixels; ++p) {
      DIAD_UNROLLED
      for (int v = 0; v < kParts; ++v) ends.end(first + p, part + v, sum[p][v]);
    }
  }

  template <typename Weight, int kPixels, int kUsed, typename Ends>
  static void pixels(const Weight* weights, const Scalar* const* inputs, int64_t offset, int64_t steps,
                     const Ends& ends, int64_t first, Upcoming& upcoming) {
    constexpr int kParts = kUsed < Vector::kPartsAtOnce ? kUsed : Vector::kPartsAtOnce;
    for (int part = 0; part < kUsed; part += kParts) {
      tile<Weight, kPixels, kParts>(weights, inputs, offset, steps, ends, first, part, upcoming);
    }
  }

  // Sums in memory, kBlock per pixel.
  struct InMemory {
    Scalar* sums;

    [[nodiscard]] V begin(int64_t pixel, int part) const {
      return Vector::load(sums + pixel * kBlock + part * Vector::kWidth);
    }
    void end(int64_t pixel, int part, V sum) const {
      Vector::store(sums + pixel * kBlock + part * Vector::kWidth, sum);
    }
  };

  // Returns whether the remaining `left` channels fit into the first half of a block.
  static bool is_half(int64_t left) { return left <= kBlock / 2; }

  // Processes all pixels for the first kUsed vectors of the block. `next` are the following weights, `bytes`
  // in size; the passes share the work of prefetching them.
  template <int kUsed, typename Weight, typename Ends>
  static void all_pixels(const Weight* weights, const Scalar* const* inputs, int64_t count, int64_t offset,
                         int64_t steps, const Ends& ends, const void* next, int64_t bytes) {
    constexpr int kMost = Vector::kPixels,
                  kPasses = kUsed < Vector::kPartsAtOnce ? 1 : kUsed / Vector::kPartsAtOnce;
    const int64_t rest = count % kMost, passes = (count / kMost + rest / 2 + rest % 2) * kPasses;
    const int64_t times = passes * (steps / kSteps), advance = times == 0 ? 0 : (bytes + times - 1) / times;
    Upcoming upcoming{static_cast<const char*>(next), (advance + kLine - 1) / kLine, advance};
    int64_t p = 0;
    for (; p + kMost <= count; p += kMost)
      pixels<Weight, kMost, kUsed>(weights, inputs, offset, steps, ends, p, upcoming);
    for (; p + 2 <= count; p += 2)
      pixels<Weight, 2, kUsed>(weights, inputs, offset, steps, ends, p, upcoming);
    if (p < count) pixels<Weight, 1, kUsed>(weights, inputs, offset, steps, ends, p, upcoming);
  }
};

template <typename Vector>
struct DirectConvLoops : ConvLoops<Vector> {
  using Loops = ConvLoops<Vector>;
  using V = typename Vector::Type;
  using Loops::kDepth;

  template <typename Weight>
  static void widen(const Weight* from, int64_t count, float* to) {
    for (int64_t i = 0; i < count; i += Vector::kWidth) Vector::store(to + i, Vector::load(from + i));
  }

  // The first pass starts with the bias and the last one writes the output; in between, sums are kept in
  // memory.
  struct Ends {
    float* sums;          // [pixels][kBlock]
    const float* from;    // the bias, then the sums
    int64_t from_stride;  // between pixels: 0, then kBlock
    bool is_last;
    float* y;                      // channels of the block at pixel 0
    const float* residual;         // likewise, or null
    int64_t pixel_stride, filled;  // floats between pixels, channels of the block
    bool relu;
    float upper;

    // Keeps NaN.
    [[nodiscard]] V activated(V sum) const {
      return relu ? Vector::min(Vector::broadcast(upper), Vector::max(Vector::broadcast(0), sum)) : sum;
    }

    [[nodiscard]] V begin(int64_t pixel, int part) const {
      const int64_t k = part * Vector::kWidth;
      // Prefetches the output during accumulation.
      if (is_last) Vector::prefetch_soon(y + pixel * pixel_stride + k);
      return Vector::load(from + pixel * from_stride + k);
    }

    void end(int64_t pixel, int part, V sum) const {
      const int64_t k = part * Vector::kWidth, left = filled - k, at = pixel * pixel_stride + k;
      if (!is_last) {
        Vector::store(sums + pixel * kBlock + k, sum);
      } else if (left >= Vector::kWidth) {
        if (residual) sum = Vector::add(sum, Vector::load(residual + at));
        Vector::store(y + at, activated(sum));
      } else if (left > 0) {
        if (residual) sum = Vector::add(sum, Vector::load_first(residual + at, left));
        Vector::store_first(y + at, left, activated(sum));
      }
    }
  };

  template <typename Weight, int kUsed>
  static void block(const ConvArguments& a, int64_t block, int64_t first, int64_t last) {
    alignas(64) float sums[kMostPixels * kBlock];
    const float* inputs[kMostPixels];
    const int64_t count = last - first, from = block * kBlock, left = a.out_channels - from,
                  at = first * a.y_stride + from;
    each_pixel(a.at, first, count, [&](int64_t p, int64_t start) { inputs[p] = a.x + start; });
    Ends ends{sums,       a.bias + from,
              0,          false,
              a.y + at,   a.residual ? a.residual + at : nullptr,
              a.y_stride, left < kBlock ? left : kBlock,
              a.relu,     a.upper};
    const Weight* weights =
        static_cast<const Weight*>(a.weights) + block * a.at.runs * a.at.run_length * kBlock;
    for (int64_t run = 0; run < a.at.runs; ++run) {
      for (int64_t i = 0; i < a.at.run_length; i += kDepth) {
        const int64_t steps = a.at.run_length - i < kDepth ? a.at.run_length - i : kDepth,
                      offset = run * a.at.run_stride + i;
        const Weight* const next = weights + steps * kBlock;
        const int64_t bytes = steps * kBlock * static_cast<int64_t>(sizeof(Weight));
        ends.is_last = run + 1 == a.at.runs && i + steps == a.at.run_length;
        // Widening competes with multiplications: for more than a few tiles, widen the weights once.
        if (sizeof(Weight) < sizeof(float) && count >= 4 * Vector::kPixels) {
          alignas(64) float widened[kDepth * kBlock];
          widen(weights, steps * kBlock, widened);
          Loops::template all_pixels<kUsed>(widened, inputs, count, offset, steps, ends, next, bytes);
        } else {
          Loops::template all_pixels<kUsed>(weights, inputs, count, offset, steps, ends, next, bytes);
        }
        ends.from = sums;
        ends.from_stride = kBlock;
        weights = next;
      }
    }
  }

  template <int kUsed>
  static void in_weights_type(const ConvArguments& a, int64_t index, int64_t first, int64_t last) {
    if (a.half) block<uint16_t, kUsed>(a, index, first, last);
    else block<float, kUsed>(a, index, first, last);
  }

  static void run(const ConvArguments& a, int64_t index, int64_t first, int64_t last) {
    if (Loops::is_half(a.out_channels - index * kBlock))
      in_weights_type<Loops::kVectors / 2>(a, index, first, last);
    else in_weights_type<Loops::kVectors>(a, index, first, last);
  }
};

}  // namespace diad::kernels
