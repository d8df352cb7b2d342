// Visits the pixels of a class as groups of equal scores in descending order, in bounded memory.
//
// All ranking metrics are functions of these groups. The groups are found by a most-significant-digit-first
// descent over order-preserving integer keys: ranges of keys that fit the scratch memory are gathered and
// radix-sorted, others are split by their next 16 bits, and once all bits are fixed no sorting is needed. The
// scratch memory is two buffers of at most `capacity` entries (8 bytes each for float32 scores, 16 for
// float64), independent of the number of pixels. Each range costs one pass over the pixels.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "stopped.h"

namespace diad::metrics {

// A group of equal scores.
template <typename Score>
struct ScoreGroup {
  Score score{};
  uint64_t negatives = 0;    // background pixels
  uint64_t positives = 0;    // defect pixels
  double region_shares = 0;  // sum of 1 / area of the region over the defect pixels
};

// Returns a key whose unsigned order is the order of finite floating-point numbers; both zeros have the same
// key.
template <std::floating_point Score>
auto order_key(Score score) {
  using Key = std::conditional_t<sizeof(Score) == 4, uint32_t, uint64_t>;
  const auto bits = std::bit_cast<Key>(score + Score{0});
  constexpr Key sign = Key{1} << (8 * sizeof(Key) - 1);
  return static_cast<Key>((bits & sign) != 0 ? ~bits : bits | sign);
}

template <std::floating_point Score, typename Key>
Score score_of_key(Key key) {
  constexpr Key sign = Key{1} << (8 * sizeof(Key) - 1);
  return std::bit_cast<Score>(static_cast<Key>((key & sign) != 0 ? key & ~sign : ~key));
}

template <std::floating_point Score>
class ScoreGroups {
 public:
  using Key = decltype(order_key(Score{}));
  using Group = ScoreGroup<Score>;

  // maps: one pointer per image to `pixels` finite scores. regions: [N * pixels], 0 is background.
  // region_weights: 1 / area of region r at [r - 1]. stop: polled before each pass over an image.
  ScoreGroups(std::span<const Score* const> maps, size_t pixels, std::span<const uint32_t> regions,
              std::span<const double> region_weights, size_t capacity, const std::function<bool()>& stop)
      : maps_(maps),
        pixels_(pixels),
        regions_(regions),
        weights_(region_weights),
        capacity_(std::max<size_t>(capacity, 1)),
        stop_(stop) {}

  // Calls visit(group) for each group, highest score first. Throws Stopped.
  template <typename Visit>
  void descend(Visit&& visit) {
    if (maps_.size() * pixels_ <= capacity_) {
      visit_gathered(Key{0}, static_cast<Key>(~Key{0}), maps_.size() * pixels_, visit);
    } else {
      descend_below(Key{0}, static_cast<int>(8 * sizeof(Key)), visit);
    }
  }

 private:
  static constexpr int kDigit = 16;
  static constexpr size_t kBins = size_t{1} << kDigit;

  struct Entry {
    Key key;
    uint32_t region;
  };

  // Visits the keys that share the bits above `open` with `prefix`.
  template <typename Visit>
  void descend_below(Key prefix, int open, Visit& visit) {
    const int shift = open - kDigit;
    if (shift == 0) {
      visit_counted(prefix, visit);
      return;
    }
    const std::vector<uint64_t> counts = count_digits(prefix, open);
    const auto low_of = [&](size_t bin) {
      return static_cast<Key>(prefix | static_cast<Key>(static_cast<Key>(bin) << shift));
    };
    const auto high_of = [&](size_t bin) {
      return static_cast<Key>(low_of(bin) | static_cast<Key>((Key{1} << shift) - 1));
    };
    size_t top = kBins;  // bins [bin, top) are pending and have `waiting` entries
    uint64_t waiting = 0;
    const auto flush = [&](size_t bin) {
      if (waiting > 0) visit_gathered(low_of(bin), high_of(top - 1), static_cast<size_t>(waiting), visit);
      waiting = 0;
      top = bin;
    };
    for (size_t bin = kBins; bin-- > 0;) {
      if (waiting + counts[bin] > capacity_) flush(bin + 1);
      if (counts[bin] > capacity_) {
        descend_below(low_of(bin), shift, visit);
        top = bin;
      } else {
        waiting += counts[bin];
      }
    }
    flush(0);
  }

  template <typename Use>
  void for_each_pixel(Use&& use) {
    for (size_t n = 0; n < maps_.size(); ++n) {
      if (stop_()) throw Stopped();
      const Score* map = maps_[n];
      const uint32_t* region = regions_.data() + n * pixels_;
      for (size_t i = 0; i < pixels_; ++i) use(order_key(map[i]), region[i]);
    }
  }

  static bool shares(Key key, Key prefix, int open) {
    return open == static_cast<int>(8 * sizeof(Key)) || (key >> open) == (prefix >> open);
  }

  std::vector<uint64_t> count_digits(Key prefix, int open) {
    std::vector<uint64_t> counts(kBins, 0);
    for_each_pixel([&](Key key, uint32_t) {
      if (shares(key, prefix, open)) ++counts[static_cast<size_t>(key >> (open - kDigit)) & (kBins - 1)];
    });
    return counts;
  }

  // All bits except the last digit are fixed: one pass counts every group.
  template <typename Visit>
  void visit_counted(Key prefix, Visit& visit) {
    std::vector<Group> groups(kBins);
    for_each_pixel([&](Key key, uint32_t region) {
      if (shares(key, prefix, kDigit)) add(groups[static_cast<size_t>(key) & (kBins - 1)], region);
    });
    for (size_t bin = kBins; bin-- > 0;) {
      Group& group = groups[bin];
      if (group.negatives + group.positives == 0) continue;
      group.score = score_of_key<Score>(static_cast<Key>(prefix | static_cast<Key>(bin)));
      visit(group);
    }
  }

  template <typename Visit>
  void visit_gathered(Key low, Key high, size_t count, Visit& visit) {
    entries_.resize(count);
    size_t filled = 0;
    for_each_pixel([&](Key key, uint32_t region) {
      if (key >= low && key <= high) entries_[filled++] = {key, region};
    });
    sort_entries();
    for (size_t end = count; end > 0;) {
      const Key key = entries_[end - 1].key;
      Group group{score_of_key<Score>(key), 0, 0, 0};
      for (; end > 0 && entries_[end - 1].key == key; --end) add(group, entries_[end - 1].region);
      visit(group);
    }
  }

  void add(Group& group, uint32_t region) const {
    if (region == 0) {
      ++group.negatives;
    } else {
      ++group.positives;
      group.region_shares += weights_[region - 1];
    }
  }

  // Least-significant-digit radix sort by key, ascending; skips digits that all keys share.
  void sort_entries() {
    constexpr int digit = 11;
    constexpr size_t bins = size_t{1} << digit;
    constexpr int digits = (8 * static_cast<int>(sizeof(Key)) + digit - 1) / digit;
    std::array<std::vector<size_t>, digits> counts;
    for (auto& each : counts) each.assign(bins, 0);
    for (const Entry& entry : entries_) {
      for (int d = 0; d < digits; ++d)
        ++counts[static_cast<size_t>(d)][static_cast<size_t>(entry.key >> (d * digit)) & (bins - 1)];
    }
    sorted_.resize(entries_.size());
    for (int d = 0; d < digits; ++d) {
      std::vector<size_t>& places = counts[static_cast<size_t>(d)];
      if (std::find(places.begin(), places.end(), entries_.size()) != places.end()) continue;
      size_t place = 0;
      for (size_t& count : places) place += std::exchange(count, place);
      for (const Entry& entry : entries_)
        sorted_[places[static_cast<size_t>(entry.key >> (d * digit)) & (bins - 1)]++] = entry;
      entries_.swap(sorted_);
      if (stop_()) throw Stopped();
    }
  }

  std::span<const Score* const> maps_;
  size_t pixels_;
  std::span<const uint32_t> regions_;
  std::span<const double> weights_;
  size_t capacity_;
  const std::function<bool()>& stop_;
  std::vector<Entry> entries_, sorted_;
};

}  // namespace diad::metrics
