// Selects vectors that cover a set of vectors well.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace diad {

// Returns the rows of a greedy k-center selection of `count` of the vectors [N, D], float32: row 0 first,
// then again and again the row that is farthest from all selected ones (PatchCore, Roth et al., CVPR 2022,
// section 3.2). Distances are computed after a random projection to at most 32 dimensions. All rows if
// `count` is N or more. Calls check_cancelled.
[[nodiscard]] std::vector<int64_t> coreset(const at::Tensor& vectors, int64_t count);

}  // namespace diad
