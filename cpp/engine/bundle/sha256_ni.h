// SHA-256 with the SHA extensions of x86-64.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace diad::kernels {

// Updates the state with `count` blocks of 64 bytes (FIPS 180-4 section 6.2.2). `constants` are the 64 words
// of section 4.2.2.
void sha256_blocks(uint32_t* state, const uint8_t* blocks, size_t count, const uint32_t* constants);

}  // namespace diad::kernels
