// CPU kernels with AVX2, FMA and F16C: 6 pixels by 2 vectors of 8 channels in registers.
#include <immintrin.h>

#include "cpu/kernels/depthwise_kernel.h"
#include "cpu/kernels/direct_conv_kernel.h"
#include "cpu/kernels/rowwise_kernels.h"
#include "cpu/kernels/winograd_kernel.h"

namespace diad::kernels {

namespace {

struct Avx2 {
  using Type = __m256;
  using Scalar = float;
  static constexpr int kWidth = 8, kPartsAtOnce = 2, kPixels = 6;

  static Type load(const float* from) { return _mm256_loadu_ps(from); }
  static Type load(const uint16_t* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static void prefetch(const void* from) { _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T1); }
  static void prefetch_soon(const void* from) { _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T0); }
  static Type broadcast(float value) { return _mm256_set1_ps(value); }
  static Type multiply_add(Type a, Type b, Type c) { return _mm256_fmadd_ps(a, b, c); }
  static Type negative_multiply_add(Type a, Type b, Type c) { return _mm256_fnmadd_ps(a, b, c); }
  static Type multiply(Type a, Type b) { return _mm256_mul_ps(a, b); }
  static Type add(Type a, Type b) { return _mm256_add_ps(a, b); }
  static Type subtract(Type a, Type b) { return _mm256_sub_ps(a, b); }
  static Type max(Type a, Type b) { return _mm256_max_ps(a, b); }
  static Type min(Type a, Type b) { return _mm256_min_ps(a, b); }
  static Type divide(Type a, Type b) { return _mm256_div_ps(a, b); }
  static Type root(Type a) { return _mm256_sqrt_ps(a); }
  static Type absolute(Type a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.F), a); }
  static Type round(Type a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Type times_power_of_two(Type a, Type n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
  }
  static Type where_negative(Type a, Type then, Type otherwise) {
    return _mm256_blendv_ps(otherwise, then, _mm256_cmp_ps(a, _mm256_setzero_ps(), _CMP_LT_OQ));
  }
  static float sum(Type a) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }
  static float greatest(Type a) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
  }
  static void store(float* to, Type value) { _mm256_storeu_ps(to, value); }
  // The first `count` lanes, fewer than kWidth; the other lanes are loaded as 0.
  static Type load_first(const float* from, int64_t count) { return _mm256_maskload_ps(from, first(count)); }
  static void store_first(float* to, int64_t count, Type value) {
    _mm256_maskstore_ps(to, first(count), value);
  }
  static __m256i first(int64_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
};

}  // namespace

void direct_conv_avx2(const ConvArguments& arguments, int64_t block, int64_t first, int64_t last) {
  DirectConvLoops<Avx2>::run(arguments, block, first, last);
}

void depthwise_conv_avx2(const DepthwiseArguments& arguments, int64_t first, int64_t last) {
  DepthwiseLoops<Avx2>::run(arguments, first, last);
}

const WinogradKernels winograd_avx2 = winograd_kernels<Avx2>();
const RowKernels rows_avx2 = row_kernels<Avx2>();

}  // namespace diad::kernels
