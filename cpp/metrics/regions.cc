#include "regions.h"

namespace diad::metrics {

namespace {

// Disjoint sets of provisional labels; the smallest label is the root.
class Labels {
 public:
  Labels() : parents_{0} {}

  uint32_t add() {
    parents_.push_back(static_cast<uint32_t>(parents_.size()));
    return parents_.back();
  }

  uint32_t root(uint32_t label) {
    while (parents_[label] != label) {
      parents_[label] = parents_[parents_[label]];
      label = parents_[label];
    }
    return label;
  }

  uint32_t join(uint32_t a, uint32_t b) {
    a = root(a);
    b = root(b);
    if (a < b) {
      parents_[b] = a;
      return a;
    }
    parents_[a] = b;
    return b;
  }

  [[nodiscard]] size_t size() const { return parents_.size(); }

 private:
  std::vector<uint32_t> parents_;
};

// Assigns provisional labels to one mask: each pixel joins the labels of its four already visited neighbors.
void label_mask(const uint8_t* mask, size_t height, size_t width, uint32_t* provisional, Labels& labels) {
  for (size_t y = 0; y < height; ++y) {
    for (size_t x = 0; x < width; ++x) {
      const size_t here = y * width + x;
      uint32_t label = 0;
      if (mask[here] != 0) {
        const auto meet = [&](size_t neighbor) {
          const uint32_t other = provisional[neighbor];
          if (other != 0) label = label == 0 ? other : labels.join(label, other);
        };
        if (x > 0) meet(here - 1);
        if (y > 0) {
          if (x > 0) meet(here - width - 1);
          meet(here - width);
          if (x + 1 < width) meet(here - width + 1);
        }
        if (label == 0) label = labels.add();
      }
      provisional[here] = label;
    }
  }
}

}  // namespace

Regions label_regions(std::span<const uint8_t* const> masks, size_t height, size_t width) {
  const size_t pixels = height * width;
  Regions regions;
  regions.of_pixel.resize(masks.size() * pixels);
  for (size_t n = 0; n < masks.size(); ++n) {
    uint32_t* const labelled = regions.of_pixel.data() + n * pixels;
    Labels labels;
    label_mask(masks[n], height, width, labelled, labels);
    if (labels.size() == 1) continue;
    std::vector<uint32_t> number(labels.size(), 0);  // region number of a root, counted over all masks
    for (size_t i = 0; i < pixels; ++i) {
      if (labelled[i] == 0) continue;
      const uint32_t root = labels.root(labelled[i]);
      if (number[root] == 0) {
        regions.areas.push_back(0);
        number[root] = static_cast<uint32_t>(regions.areas.size());
      }
      labelled[i] = number[root];
      ++regions.areas[number[root] - 1];
    }
  }
  return regions;
}

}  // namespace diad::metrics
