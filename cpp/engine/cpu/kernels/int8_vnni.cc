// QuantizedConv with AVX-512 VNNI: 8 pixels by 2 vectors of 16 channels in registers, four products per lane
// and instruction.
#include <immintrin.h>

#include "cpu/kernels/int8_kernel.h"

namespace diad::kernels {

namespace {

constexpr __mmask16 kAll = 0xFFFF;  // masked forms: GCC 12 warns about uninitialized values in the others

struct Vnni {
  using Type = __m512i;
  using Scalar = int32_t;
  static constexpr int kWidth = 16, kPartsAtOnce = 2, kPixels = 8;

  static Type load(const int32_t* from) { return _mm512_loadu_si512(from); }
  static void prefetch(const void* from) { _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T1); }
  static Type broadcast(int32_t value) { return _mm512_set1_epi32(value); }
  static Type multiply_add(Type unsigned_bytes, Type signed_bytes, Type sum) {
    return _mm512_dpbusd_epi32(sum, unsigned_bytes, signed_bytes);
  }
  static void store(int32_t* to, Type value) { _mm512_storeu_si512(to, value); }
};

using Loops = ConvLoops<Vnni>;

void finish(const QuantizedArguments& a, int64_t block, int64_t first, int64_t count, const int32_t* sums) {
  const int64_t from = block * kBlock;
  for (int64_t v = 0; v < kBlock; v += Vnni::kWidth) {
    const int64_t left = a.out_channels - from - v;
    if (left <= 0) return;
    const auto mask = static_cast<__mmask16>(left < Vnni::kWidth ? (1 << left) - 1 : kAll);
    const __m512 scales = _mm512_loadu_ps(a.scales + from + v), bias = _mm512_loadu_ps(a.bias + from + v);
    for (int64_t p = 0; p < count; ++p) {
      const __m512 scale =
          _mm512_mul_ps(scales, _mm512_set1_ps(a.quantizations[(first + p) / a.pixels_of_each].scale));
      const __m512 sum = _mm512_maskz_cvtepi32_ps(kAll, _mm512_loadu_si512(sums + p * kBlock + v));
      __m512 value = _mm512_fmadd_ps(sum, scale, bias);
      const int64_t at = (first + p) * a.out_channels + from + v;
      if (a.residual) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, a.residual + at));
      if (a.relu) value = _mm512_maskz_max_ps(kAll, _mm512_setzero_ps(), value);  // keeps NaN
      _mm512_mask_storeu_ps(a.y + at, mask, value);
    }
  }
}

void convolution(const QuantizedArguments& a, int64_t block, int64_t first, int64_t last) {
  alignas(64) int32_t sums[kMostPixels * kBlock];
  const int32_t* inputs[kMostPixels];
  const int64_t count = last - first;
  each_pixel(a.at, first, count, [&](int64_t p, int64_t start) {
    inputs[p] = a.x + start;
    const int32_t zero = a.quantizations[(first + p) / a.pixels_of_each].zero;
    for (int64_t k = 0; k < kBlock; ++k) sums[p * kBlock + k] = -zero * a.weight_sums[block * kBlock + k];
  });
  const int32_t* weights = a.weights + block * a.at.runs * a.at.run_length * kBlock;
  for (int64_t run = 0; run < a.at.runs; ++run) {
    for (int64_t i = 0; i < a.at.run_length; i += Loops::kDepth) {
      const int64_t steps = a.at.run_length - i < Loops::kDepth ? a.at.run_length - i : Loops::kDepth;
      const int32_t* const next = weights + steps * kBlock;
      Loops::all_pixels<Loops::kVectors>(weights, inputs, count, run * a.at.run_stride + i, steps,
                                         Loops::InMemory{sums}, next,
                                         steps * kBlock * static_cast<int64_t>(sizeof(int32_t)));
      weights = next;
    }
  }
  finish(a, block, first, count, sums);
}

__mmask16 mask_of(int64_t left) {
  return static_cast<__mmask16>(left < Vnni::kWidth ? (1 << left) - 1 : kAll);
}

void extend(const float* values, int64_t count, Range& range) {
  __m512 least = _mm512_set1_ps(range.least), greatest = _mm512_set1_ps(range.greatest),
         poison = _mm512_set1_ps(range.poison);
  for (int64_t i = 0; i < count; i += Vnni::kWidth) {
    const __m512 value = _mm512_maskz_loadu_ps(mask_of(count - i), values + i);
    least = _mm512_maskz_min_ps(kAll, value, least);
    greatest = _mm512_maskz_max_ps(kAll, value, greatest);
    poison = _mm512_fmadd_ps(value, _mm512_setzero_ps(), poison);
  }
  alignas(64) float lanes[3][Vnni::kWidth];
  _mm512_store_ps(lanes[0], least);
  _mm512_store_ps(lanes[1], greatest);
  _mm512_store_ps(lanes[2], poison);
  for (int lane = 0; lane < Vnni::kWidth; ++lane) {
    if (lanes[0][lane] < range.least) range.least = lanes[0][lane];
    if (lanes[1][lane] > range.greatest) range.greatest = lanes[1][lane];
    range.poison += lanes[2][lane];
  }
}

void quantize(const float* values, int64_t count, Quantization by, uint8_t* bytes) {
  const __m512 inverse = _mm512_set1_ps(1 / by.scale);
  const __m512i zero = _mm512_set1_epi32(by.zero), none = _mm512_setzero_si512();
  for (int64_t i = 0; i < count; i += Vnni::kWidth) {
    const __mmask16 mask = mask_of(count - i);
    const __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, values + i), inverse);
    const __m512i steps = _mm512_add_epi32(_mm512_maskz_cvtps_epi32(kAll, scaled), zero);
    _mm512_mask_cvtusepi32_storeu_epi8(bytes + i, mask, _mm512_maskz_max_epi32(kAll, steps, none));
  }
}

}  // namespace

const QuantizedKernels quantized_vnni = {convolution, extend, quantize};

}  // namespace diad::kernels
