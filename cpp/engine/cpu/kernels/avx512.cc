// CPU kernels with AVX-512: 8 pixels by 2 vectors of 16 channels in registers.
#include <immintrin.h>

#include "cpu/kernels/depthwise_kernel.h"
#include "cpu/kernels/direct_conv_kernel.h"
#include "cpu/kernels/rowwise_kernels.h"
#include "cpu/kernels/winograd_kernel.h"

namespace diad::kernels {

namespace {

struct Avx512 {
  using Type = __m512;
  using Scalar = float;
  static constexpr int kWidth = 16, kPartsAtOnce = 2, kPixels = 8;

  static Type load(const float* from) { return _mm512_loadu_ps(from); }
  static Type load(const uint16_t* from) {  // masked: GCC 12 warns about uninitialized values
    return _mm512_maskz_cvtph_ps(0xFFFF, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static void prefetch(const void* from) { _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T1); }
  static void prefetch_soon(const void* from) { _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T0); }
  static Type broadcast(float value) { return _mm512_set1_ps(value); }
  static Type multiply_add(Type a, Type b, Type c) { return _mm512_fmadd_ps(a, b, c); }
  static Type negative_multiply_add(Type a, Type b, Type c) { return _mm512_fnmadd_ps(a, b, c); }
  static Type multiply(Type a, Type b) { return _mm512_mul_ps(a, b); }
  static Type add(Type a, Type b) { return _mm512_add_ps(a, b); }
  static Type subtract(Type a, Type b) { return _mm512_sub_ps(a, b); }
  static Type max(Type a, Type b) { return _mm512_maskz_max_ps(0xFFFF, a, b); }  // masked, see load
  static Type min(Type a, Type b) { return _mm512_maskz_min_ps(0xFFFF, a, b); }
  static Type divide(Type a, Type b) { return _mm512_div_ps(a, b); }
  static Type root(Type a) { return _mm512_maskz_sqrt_ps(0xFFFF, a); }
  static Type absolute(Type a) { return _mm512_abs_ps(a); }
  static Type round(Type a) {
    return _mm512_maskz_roundscale_ps(0xFFFF, a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static Type times_power_of_two(Type a, Type n) { return _mm512_maskz_scalef_ps(0xFFFF, a, n); }
  static Type where_negative(Type a, Type then, Type otherwise) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, _mm512_setzero_ps(), _CMP_LT_OQ), otherwise, then);
  }
  template <int kHalf>
  static __m256 half(Type a) {
    return _mm512_maskz_extractf32x8_ps(0xFF, a, kHalf);
  }
  static float sum(Type a) {
    const __m256 eight = _mm256_add_ps(half<0>(a), half<1>(a));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
  }
  static float greatest(Type a) {
    const __m256 eight = _mm256_max_ps(half<0>(a), half<1>(a));
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
  }
  static void store(float* to, Type value) { _mm512_storeu_ps(to, value); }
  // The first `count` lanes, fewer than kWidth; the other lanes are loaded as 0.
  static Type load_first(const float* from, int64_t count) {
    return _mm512_maskz_loadu_ps(first(count), from);
  }
  static void store_first(float* to, int64_t count, Type value) {
    _mm512_mask_storeu_ps(to, first(count), value);
  }
  static __mmask16 first(int64_t count) { return static_cast<__mmask16>((1 << count) - 1); }
};

}  // namespace

void direct_conv_avx512(const ConvArguments& arguments, int64_t block, int64_t first, int64_t last) {
  DirectConvLoops<Avx512>::run(arguments, block, first, last);
}

void depthwise_conv_avx512(const DepthwiseArguments& arguments, int64_t first, int64_t last) {
  DepthwiseLoops<Avx512>::run(arguments, first, last);
}

const WinogradKernels winograd_avx512 = winograd_kernels<Avx512>();
const RowKernels rows_avx512 = row_kernels<Avx512>();

}  // namespace diad::kernels
