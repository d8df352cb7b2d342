// Support for the evidence tests: a manifest and the sizes of its maps.
#pragma once

#include <cstddef>
#include <vector>

#include "bundle/bundle.h"

// 16 x 16 images, three maps of 6 x 6, 4 x 4 and 2 x 2 positions, vectors of 2 dimensions on a 3 x 3 grid.
inline diad::Manifest evidence_manifest() {
  diad::Manifest m;
  m.name = "small";
  m.image_size = 16;
  m.map_sigma = 1.5;
  m.map_truncate = 4;
  m.pool_size = 3;
  m.pool_count = 2;
  m.evidence = {
      .dimensions = 2, .grid = 3, .memory_vectors = 100, .weights = {.reconstruction = 0.5, .memory = 1}};
  return m;
}

inline std::vector<int64_t> map_size(size_t map) {
  constexpr int64_t kSides[] = {6, 4, 2, 3};
  return {kSides[map], kSides[map]};
}
