// Releases free heap memory.
#pragma once

namespace diad {

// Returns free memory inside the heap to the system, if the C library supports it.
void trim_heap();

}  // namespace diad
