#include "support/malloc_trim.h"

#if __has_include(<gnu/libc-version.h>)
#include <malloc.h>
#define DIAD_HAS_MALLOC_TRIM 1
#endif

namespace diad {

void trim_heap() {
#ifdef DIAD_HAS_MALLOC_TRIM
  malloc_trim(0);
#endif
}

}  // namespace diad
