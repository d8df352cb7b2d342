// DirectConv and WinogradConv with AVX2, FMA and F16C: 6 pixels by 2 vectors of 8 channels in registers.
#include <immintrin.h>

#include "direct_conv_kernel.h"
#include "winograd_kernel.h"

namespace diad::kernels {

namespace {

struct Avx2 {
  using Type = __m256;
  using Scalar = float;
  static constexpr int kWidth = 8, kPartsAtOnce = 2, kPixels = 6;

  static Type load(const float* from) { return _mm256_loadu_ps(from); }
  static Type load(const uint16_t* from) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))); }
  static void prefetch(const void* from) { _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T1); }
  static Type broadcast(float value) { return _mm256_set1_ps(value); }
  static Type multiply_add(Type a, Type b, Type c) { return _mm256_fmadd_ps(a, b, c); }
  static Type negative_multiply_add(Type a, Type b, Type c) { return _mm256_fnmadd_ps(a, b, c); }
  static Type multiply(Type a, Type b) { return _mm256_mul_ps(a, b); }
  static Type add(Type a, Type b) { return _mm256_add_ps(a, b); }
  static Type subtract(Type a, Type b) { return _mm256_sub_ps(a, b); }
  static Type max(Type a, Type b) { return _mm256_max_ps(a, b); }
  static void store(float* to, Type value) { _mm256_storeu_ps(to, value); }
};

}  // namespace

void direct_conv_avx2(const ConvArguments& arguments, int64_t block, int64_t first, int64_t last) {
  DirectConvLoops<Avx2>::run(arguments, block, first, last);
}

const WinogradKernels winograd_avx2 = winograd_kernels<Avx2>();

}  // namespace diad::kernels
