#include "bundle/sha256_ni.h"

#include <immintrin.h>

namespace diad::kernels {

void sha256_blocks(uint32_t* state, const uint8_t* blocks, size_t count, const uint32_t* constants) {
  // The instructions keep the working variables as (a, b, e, f) and (c, d, g, h), highest word first.
  const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(state));       // d c b a
  const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(state + 4));  // h g f e
  const __m128i cdab = _mm_shuffle_epi32(low, 0xB1), efgh = _mm_shuffle_epi32(high, 0x1B);
  __m128i abef = _mm_alignr_epi8(cdab, efgh, 8), cdgh = _mm_blend_epi16(efgh, cdab, 0xF0);
  const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);

  for (; count > 0; --count, blocks += 64) {
    const __m128i abef_before = abef, cdgh_before = cdgh;
    const auto words = [&](int at) {
      return _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(blocks + at)), big_endian);
    };
    __m128i w0 = words(0), w1 = words(16), w2 = words(32), w3 = words(48);
    for (int round = 0; round < 64; round += 4) {
      const __m128i sum =
          _mm_add_epi32(w0, _mm_loadu_si128(reinterpret_cast<const __m128i*>(constants + round)));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0E));
      const __m128i next =
          _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(w0, w1), _mm_alignr_epi8(w3, w2, 4)), w3);
      w0 = w1, w1 = w2, w2 = w3, w3 = next;
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }

  const __m128i feba = _mm_shuffle_epi32(abef, 0x1B), dchg = _mm_shuffle_epi32(cdgh, 0xB1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state), _mm_blend_epi16(feba, dchg, 0xF0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}

}  // namespace diad::kernels
