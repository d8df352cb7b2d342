// Connected regions of defect masks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace diad::metrics {

// Region of each pixel: 0 is background; regions are numbered from 1 over all masks of a class.
struct Regions {
  std::vector<uint32_t> of_pixel;  // [N, H, W]
  std::vector<uint64_t> areas;     // pixels of region r at [r - 1]
};

// Labels the 8-connected regions of each mask (nonzero is defect), like scikit-image's `label` with its
// default connectivity.
//
// masks: one pointer per mask to height * width bytes.
Regions label_regions(std::span<const uint8_t* const> masks, size_t height, size_t width);

}  // namespace diad::metrics
