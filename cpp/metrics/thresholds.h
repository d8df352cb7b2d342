// Metrics over a fixed set of thresholds, as computed by tools that do not sort, from the groups of equal
// scores.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "ranking.h"
#include "score_groups.h"

namespace diad::metrics {

// numpy.arange for floating-point scalars of one type, bit-exact: the length is the quotient rounded up, and
// each element is start + i * delta, where delta is the rounded difference of the first two elements. Empty
// for a step that is not positive.
template <std::floating_point Score>
std::vector<Score> numpy_arange(Score start, Score stop, Score step) {
  if (!(step > 0)) return {};
  const auto span = static_cast<Score>(stop - start);
  const double length = std::ceil(static_cast<double>(static_cast<Score>(span / step)));
  if (!(length > 0 && length < 1e6)) return {};
  const auto second = static_cast<Score>(start + step);
  const auto delta = static_cast<Score>(second - start);
  std::vector<Score> values(static_cast<size_t>(length));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = i == 0   ? start
                : i == 1 ? second
                         : static_cast<Score>(start + static_cast<Score>(static_cast<Score>(i) * delta));
  }
  return values;
}

// How rates below the limit are scaled to 0..1 before integration.
enum class RateScale { kByLargest, kByRange };

// Per-region overlap at `steps` equidistant thresholds from the lowest score (a pixel is predicted if its
// score is above the threshold), integrated over the points with a false positive rate below the limit. No
// points are added at the ends.
template <std::floating_point Score>
class SteppedOverlap {
 public:
  SteppedOverlap(Score lowest, Score highest, int steps, uint64_t negatives, size_t regions)
      : thresholds_(numpy_arange(
            lowest, highest,
            static_cast<Score>(static_cast<Score>(highest - lowest) / static_cast<Score>(steps)))),
        next_(thresholds_.size()),
        negatives_(negatives),
        regions_(regions) {}

  void add(const ScoreGroup<Score>& group) {
    while (next_ > 0 && !(group.score > thresholds_[next_ - 1])) record();
    false_positives_ += group.negatives;
    shares_.add(group.region_shares);
  }

  // Undefined without regions or background, with fewer than two points below the limit, or if these points
  // have no width.
  std::optional<double> area(double limit, RateScale scale) {
    while (next_ > 0) record();
    if (regions_ == 0 || negatives_ == 0) return std::nullopt;
    std::vector<Point> kept;  // ascending rates: thresholds were visited from the highest
    for (const Point& point : points_) {
      if (point.rate < limit) kept.push_back(point);
    }
    if (kept.size() < 2) return std::nullopt;
    const double low = scale == RateScale::kByRange ? kept.front().rate : 0;
    const double width = kept.back().rate - low;
    if (!(width > 0)) return std::nullopt;
    double area = 0;
    for (size_t i = 1; i < kept.size(); ++i) {
      area += ((kept[i].rate - low) / width - (kept[i - 1].rate - low) / width) *
              (kept[i].overlap + kept[i - 1].overlap) / 2;
    }
    return area;
  }

 private:
  struct Point {
    double rate, overlap;
  };

  void record() {
    points_.push_back({static_cast<double>(false_positives_) / static_cast<double>(negatives_),
                       shares_.value() / static_cast<double>(regions_)});
    --next_;
  }

  std::vector<Score> thresholds_;
  size_t next_;  // thresholds [0, next_) are not yet recorded
  uint64_t negatives_;
  size_t regions_;
  uint64_t false_positives_ = 0;
  Sum shares_;
  std::vector<Point> points_;
};

// Largest F1 over the thresholds 0, 0.05, ..., 1 of scores scaled to 0..1 by minimum and maximum, with 1e-8
// added to each denominator.
template <std::floating_point Score>
class SteppedF1 {
 public:
  SteppedF1(Score lowest, Score highest, uint64_t positives)
      : lowest_(lowest),
        range_(static_cast<Score>(highest - lowest)),
        positives_(positives),
        thresholds_(numpy_arange(0.0, 1.0 + 1e-3, 0.05)),
        next_(thresholds_.size()) {}

  void add(const ScoreGroup<Score>& group) {
    const auto scaled =
        static_cast<double>(static_cast<Score>(static_cast<Score>(group.score - lowest_) / range_));
    while (next_ > 0 && !(scaled > thresholds_[next_ - 1])) record();
    true_positives_ += group.positives;
    predicted_ += group.negatives + group.positives;
  }

  std::optional<double> best() {
    while (next_ > 0) record();
    return positives_ == 0 ? std::nullopt : std::optional(best_);
  }

 private:
  void record() {
    const auto found = static_cast<double>(true_positives_);
    const double precision = found / (static_cast<double>(predicted_) + 1e-8);
    const double recall = found / (static_cast<double>(positives_) + 1e-8);
    best_ = std::max(best_, 2 * precision * recall / (precision + recall + 1e-8));
    --next_;
  }

  Score lowest_, range_;
  uint64_t positives_;
  std::vector<double> thresholds_;
  size_t next_;
  uint64_t true_positives_ = 0, predicted_ = 0;
  double best_ = 0;
};

}  // namespace diad::metrics
