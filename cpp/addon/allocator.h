// Process-wide settings of the C library's allocator.
#pragma once

namespace diad_addon {

// Keeps large blocks in the heap instead of mapping each one: every layer frees and allocates activations,
// and the system zeroes new mappings page by page. Uses a single arena, so that the inference thread
// allocates from the same heap. Returns false if the C library lacks these settings.
bool tune_allocator();

}  // namespace diad_addon
