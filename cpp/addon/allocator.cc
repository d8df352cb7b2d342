#include "allocator.h"

#if defined(__GLIBC__) || __has_include(<gnu/libc-version.h>)
#include <malloc.h>
#define DIAD_HAS_MALLOPT 1
#endif

namespace diad_addon {

bool tune_allocator() {
#ifdef DIAD_HAS_MALLOPT
  constexpr int kTrimThreshold = 1 << 30;  // free bytes at the heap's end before they are released
  constexpr int kTopPad = 64 << 20;        // bytes requested in advance when the heap grows
  return mallopt(M_ARENA_MAX, 1) == 1 && mallopt(M_MMAP_MAX, 0) == 1 &&
         mallopt(M_TRIM_THRESHOLD, kTrimThreshold) == 1 && mallopt(M_TOP_PAD, kTopPad) == 1;
#else
  return false;
#endif
}

}  // namespace diad_addon
