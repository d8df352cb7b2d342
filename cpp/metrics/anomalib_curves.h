// The curves of anomalib (torchmetrics) with their approximations, in float64 where the tool uses float32.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "ranking.h"
#include "score_groups.h"

namespace diad::metrics {

// torchmetrics applies a sigmoid to the scores before ROC and precision-recall curves if any score lies
// outside 0..1. Computed in the precision of the scores, so that high scores become equal.
template <std::floating_point Score>
Score squashed(Score score) {
  return Score{1} / (Score{1} + std::exp(-score));
}

// Merges neighboring groups that become equal after the sigmoid; otherwise passes every group on.
template <std::floating_point Score>
class SquashedGroups {
 public:
  SquashedGroups(bool squash, std::function<void(const ScoreGroup<Score>&)> visit)
      : squash_(squash), visit_(std::move(visit)) {}

  void add(ScoreGroup<Score> group) {
    if (squash_) group.score = squashed(group.score);
    if (waiting_ && waiting_->score == group.score) {
      waiting_->negatives += group.negatives;
      waiting_->positives += group.positives;
      waiting_->region_shares += group.region_shares;
      return;
    }
    finish();
    waiting_ = group;
  }

  void finish() {
    if (waiting_) visit_(*waiting_);
    waiting_.reset();
  }

 private:
  bool squash_;
  std::function<void(const ScoreGroup<Score>&)> visit_;
  std::optional<ScoreGroup<Score>> waiting_;
};

// Area under the precision-recall curve by the trapezoidal rule. The curve is sorted by recall with a stable
// sort from ascending thresholds: among points of equal recall the precision rises, and the next recall
// starts at its lowest precision.
class TrapezoidPrecisionRecall {
 public:
  explicit TrapezoidPrecisionRecall(uint64_t positives) : positives_(positives) {}

  void add(uint64_t negatives, uint64_t positives) {
    if (positives > 0) end_level();
    false_positives_ += negatives;
    true_positives_ += positives;
    const auto found = static_cast<double>(true_positives_);
    const double precision = found / (found + static_cast<double>(false_positives_));
    if (positives > 0) level_first_ = precision;
    level_last_ = precision;
  }

  std::optional<double> area() {
    if (positives_ == 0) return std::nullopt;
    end_level();
    return area_.value();
  }

 private:
  // Completes the points of one recall: adds the trapezoid from the highest precision of the previous recall
  // to the lowest precision of this one.
  void end_level() {
    if (true_positives_ == 0) return;  // recall 0 ends at the added point with precision 1
    const double recall = static_cast<double>(true_positives_) / static_cast<double>(positives_);
    area_.add((recall - previous_recall_) * (previous_first_ + level_last_) / 2);
    previous_recall_ = recall;
    previous_first_ = level_first_;
  }

  uint64_t positives_;
  uint64_t false_positives_ = 0, true_positives_ = 0;
  double level_first_ = 1, level_last_ = 1;
  double previous_first_ = 1, previous_recall_ = 0;
  Sum area_;
};

// Area under the per-region overlap curve like anomalib's AUPRO without binning: the ROC curve of each region
// against all background, up to the limit, is resampled by point index to the length of the common curve,
// then averaged. Cost: regions x points.
class ResampledOverlap {
 public:
  // region_scores: scores of each region's pixels in descending order.
  ResampledOverlap(uint64_t negatives, std::vector<std::vector<double>> region_scores, double limit)
      : negatives_(negatives), region_scores_(std::move(region_scores)), limit_(limit) {}

  // Adds a group of equal scores; call in descending order of score.
  void add(double score, uint64_t negatives);

  // Polls `stop` before each region and throws Stopped. Undefined without regions or background, or if the
  // curve has no width.
  std::optional<double> area(const std::function<bool()>& stop);

 private:
  struct Curve {
    std::vector<double> rates, overlaps;
  };

  [[nodiscard]] Curve region_curve(std::span<const double> scores) const;
  [[nodiscard]] double rate(uint64_t false_positives) const {
    return static_cast<double>(false_positives) / static_cast<double>(negatives_);
  }

  uint64_t negatives_;
  std::vector<std::vector<double>> region_scores_;
  double limit_;
  uint64_t false_positives_ = 0;
  size_t common_points_ = 1;        // points of the common curve at or below the limit, including (0, 0)
  std::vector<double> background_;  // distinct scores, descending, until the rate exceeds the limit
  std::vector<uint64_t> background_counts_;  // pixels at or above these scores
};

}  // namespace diad::metrics
