// DirectConv and WinogradConv with AVX-512: 8 pixels by 2 vectors of 16 channels in registers.
#include <immintrin.h>

#include "direct_conv_kernel.h"
#include "winograd_kernel.h"

namespace diad::kernels {

namespace {

struct Avx512 {
  using Type = __m512;
  using Scalar = float;
  static constexpr int kWidth = 16, kPartsAtOnce = 2, kPixels = 8;

  static Type load(const float* from) { return _mm512_loadu_ps(from); }
  static Type load(const uint16_t* from) {  // masked: GCC 12 takes the plain form for uninitialised
    return _mm512_maskz_cvtph_ps(0xFFFF, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static void prefetch(const void* from) { _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T1); }
  static Type broadcast(float value) { return _mm512_set1_ps(value); }
  static Type multiply_add(Type a, Type b, Type c) { return _mm512_fmadd_ps(a, b, c); }
  static Type negative_multiply_add(Type a, Type b, Type c) { return _mm512_fnmadd_ps(a, b, c); }
  static Type multiply(Type a, Type b) { return _mm512_mul_ps(a, b); }
  static Type add(Type a, Type b) { return _mm512_add_ps(a, b); }
  static Type subtract(Type a, Type b) { return _mm512_sub_ps(a, b); }
  static Type max(Type a, Type b) { return _mm512_maskz_max_ps(0xFFFF, a, b); }  // masked for the same reason
  static void store(float* to, Type value) { _mm512_storeu_ps(to, value); }
};

}  // namespace

void direct_conv_avx512(const ConvArguments& arguments, int64_t block, int64_t first, int64_t last) {
  DirectConvLoops<Avx512>::run(arguments, block, first, last);
}

const WinogradKernels winograd_avx512 = winograd_kernels<Avx512>();

}  // namespace diad::kernels
