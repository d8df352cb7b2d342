// What the process holds of the system's memory.
#pragma once

namespace diad {

// Hands what was freed in the middle of the heap back to the system, where the C library can.
void trim_heap();

}  // namespace diad
