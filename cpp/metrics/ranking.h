// Metrics of a ranking, computed from groups of equal scores in descending order: ROC, precision-recall,
// per-region overlap.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>

namespace diad::metrics {

// Compensated sum (Neumaier): tens of millions of small terms lose no precision.
class Sum {
 public:
  void add(double term) {
    const double total = value_ + term;
    correction_ += std::abs(value_) >= std::abs(term) ? (value_ - total) + term : (term - total) + value_;
    value_ = total;
  }
  [[nodiscard]] double value() const { return value_ + correction_; }

 private:
  double value_ = 0, correction_ = 0;
};

// Area under the ROC curve (trapezoidal rule, exact in integers), average precision (sum of precision times
// recall step, as in scikit-learn's average_precision_score) and largest F1 over all thresholds.
class Ranking {
 public:
  // negatives, positives: totals over all groups.
  Ranking(uint64_t negatives, uint64_t positives) : negatives_(negatives), positives_(positives) {}

  void add(double score, uint64_t negatives, uint64_t positives) {
    twice_area_ += negatives * (2 * true_positives_ + positives);
    false_positives_ += negatives;
    true_positives_ += positives;
    const auto found = static_cast<double>(true_positives_);
    if (positives > 0)
      precision_steps_.add(static_cast<double>(positives) *
                           (found / (found + static_cast<double>(false_positives_))));
    const double f1 = 2 * found / (found + static_cast<double>(false_positives_ + positives_));
    if (f1 > f1max_) {
      f1max_ = f1;
      f1max_score_ = score;
    }
  }

  // Undefined unless there are both negatives and positives.
  [[nodiscard]] std::optional<double> auroc() const {
    if (negatives_ == 0 || positives_ == 0) return std::nullopt;
    return static_cast<double>(twice_area_) / 2 / static_cast<double>(negatives_) /
           static_cast<double>(positives_);
  }
  // Undefined without positives.
  [[nodiscard]] std::optional<double> average_precision() const {
    if (positives_ == 0) return std::nullopt;
    return precision_steps_.value() / static_cast<double>(positives_);
  }
  [[nodiscard]] std::optional<double> f1max() const {
    return positives_ == 0 ? std::nullopt : std::optional(f1max_);
  }
  // The highest score s for which classifying scores >= s as positive gives the largest F1.
  [[nodiscard]] std::optional<double> f1max_score() const {
    return positives_ == 0 ? std::nullopt : std::optional(f1max_score_);
  }

 private:
  uint64_t negatives_, positives_;
  uint64_t false_positives_ = 0, true_positives_ = 0;
  uint64_t twice_area_ = 0;  // in units of 1 / (2 P N): fits for up to 2^32 pixels
  Sum precision_steps_;
  double f1max_ = 0, f1max_score_ = 0;
};

// Area under the per-region overlap curve up to a limit of the false positive rate, divided by the limit
// (Bergmann et al., IJCV 2021, section 5). Trapezoidal rule over all points from (0, 0); the last segment is
// cut at the limit by interpolation.
class OverlapCurve {
 public:
  // single: rounds each false positive rate to float32, as the official evaluation does.
  OverlapCurve(uint64_t negatives, size_t regions, double limit, bool single)
      : negatives_(negatives), regions_(regions), limit_(limit), single_(single) {}

  void add(uint64_t negatives, double region_shares) {
    if (negatives_ == 0 || regions_ == 0 || rate_ > limit_) return;
    false_positives_ += negatives;
    shares_.add(region_shares);
    double rate = static_cast<double>(false_positives_) / static_cast<double>(negatives_);
    if (single_)
      rate = static_cast<float>(static_cast<double>(static_cast<float>(false_positives_)) /
                                static_cast<double>(negatives_));
    extend(std::min(rate, 1.0), std::min(shares_.value() / static_cast<double>(regions_), 1.0));
  }

  // Undefined without regions or without background.
  [[nodiscard]] std::optional<double> area() const {
    if (negatives_ == 0 || regions_ == 0) return std::nullopt;
    return area_.value() / limit_;
  }

 private:
  void extend(double rate, double overlap) {
    if (rate > limit_) {
      const double at_limit = overlap_ + (overlap - overlap_) * (limit_ - rate_) / (rate - rate_);
      area_.add((limit_ - rate_) * (overlap_ + at_limit) / 2);
    } else {
      area_.add((rate - rate_) * (overlap_ + overlap) / 2);
    }
    rate_ = rate;
    overlap_ = overlap;
  }

  uint64_t negatives_;
  size_t regions_;
  double limit_;
  bool single_;
  uint64_t false_positives_ = 0;
  Sum shares_, area_;
  double rate_ = 0, overlap_ = 0;
};

}  // namespace diad::metrics
