// Memory for weights: mapped piece by piece, so that each piece goes back to the system when it is let go.
#pragma once

#include <c10/core/Allocator.h>

namespace diad {

// From 1 MiB on a mapping of its own; less, and everything where there are no anonymous mappings (Windows), comes from LibTorch's
// allocator. Plain weights are freed one by one while packed ones are made: in the C library's heap their places would stay with the
// process.
[[nodiscard]] c10::Allocator* mapped_allocator();

}  // namespace diad
