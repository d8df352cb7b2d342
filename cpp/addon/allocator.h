// How the C library hands out memory; for the whole process.
#pragma once

namespace diad_addon {

// Keeps large blocks in the heap instead of mapping each afresh: a network's activations are freed and asked
// for again in every layer, and a fresh mapping is zeroed page by page. One arena, so that the inference
// thread's blocks come from that heap too. False where the C library has no such settings.
bool tune_allocator();

}  // namespace diad_addon
