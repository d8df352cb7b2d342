// Image score of a map, for inputs without image scores.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

namespace diad::metrics {

// Largest value after `count` successive size x size average pools of stride 1 without padding; with count 0
// the maximum of the map. Empty if the map is too small for the pools. Sums in float64.
template <typename Score>
std::optional<double> pooled_maximum(const Score* map, size_t height, size_t width, size_t size,
                                     size_t count);

extern template std::optional<double> pooled_maximum(const float*, size_t, size_t, size_t, size_t);
extern template std::optional<double> pooled_maximum(const double*, size_t, size_t, size_t, size_t);

}  // namespace diad::metrics
