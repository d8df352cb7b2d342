#include "class_metrics.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "anomalib_curves.h"
#include "image_score.h"
#include "ranking.h"
#include "regions.h"
#include "score_groups.h"
#include "thresholds.h"

namespace diad::metrics {

namespace {

constexpr int kDiadSteps = 200, kAderSteps = 100;
constexpr double kTorchF1Epsilon = 1e-10;

std::optional<double> flipped(std::optional<double> auroc) {
  return auroc && *auroc < 0.5 ? std::optional(1 - *auroc) : auroc;
}

bool outside_unit(double lowest, double highest) { return lowest < 0 || highest > 1; }

// anomalib's F1 adds 1e-10 to the denominator of 2PR / (P + R).
class TorchF1 {
 public:
  explicit TorchF1(uint64_t positives) : positives_(positives) {}

  void add(uint64_t negatives, uint64_t positives) {
    true_positives_ += positives;
    predicted_ += negatives + positives;
    if (positives_ == 0) return;
    const double precision = static_cast<double>(true_positives_) / static_cast<double>(predicted_);
    const double recall = static_cast<double>(true_positives_) / static_cast<double>(positives_);
    best_ = std::max(best_, 2 * precision * recall / (precision + recall + kTorchF1Epsilon));
  }

  [[nodiscard]] std::optional<double> best() const {
    return positives_ == 0 ? std::nullopt : std::optional(best_);
  }

 private:
  uint64_t positives_, true_positives_ = 0, predicted_ = 0;
  double best_ = 0;
};

struct RankingMetrics {
  std::optional<double> auroc, ap, f1max, f1max_score;
};

// Ranking metrics by the rules of a mode. Groups are added in descending order of score.
template <typename Score>
class ModeRanking {
 public:
  ModeRanking(Mode mode, uint64_t negatives, uint64_t positives, bool squash)
      : mode_(mode),
        exact_(negatives, positives),
        torch_(negatives, positives),
        torch_precision_recall_(positives),
        torch_f1_(positives),
        squashed_(squash, [this](const ScoreGroup<Score>& group) {
          torch_.add(static_cast<double>(group.score), group.negatives, group.positives);
          torch_precision_recall_.add(group.negatives, group.positives);
        }) {}
  ModeRanking(const ModeRanking&) = delete;
  ModeRanking& operator=(const ModeRanking&) = delete;

  void add(const ScoreGroup<Score>& group) {
    exact_.add(static_cast<double>(group.score), group.negatives, group.positives);
    if (mode_ != Mode::kAnomalib) return;
    squashed_.add(group);
    torch_f1_.add(group.negatives, group.positives);
  }

  RankingMetrics finish() {
    RankingMetrics found{exact_.auroc(), exact_.average_precision(), exact_.f1max(), exact_.f1max_score()};
    if (mode_ == Mode::kDiad) found.auroc = flipped(found.auroc);
    if (mode_ == Mode::kAnomalib) {
      squashed_.finish();
      found.auroc = torch_.auroc();
      found.ap = torch_precision_recall_.area();
      found.f1max = torch_f1_.best();
    }
    return found;
  }

 private:
  Mode mode_;
  Ranking exact_, torch_;
  TrapezoidPrecisionRecall torch_precision_recall_;
  TorchF1 torch_f1_;
  SquashedGroups<Score> squashed_;
};

// Samples the pixel curve wherever a rate has changed by 1/200.
class CurveSampler {
 public:
  CurveSampler(uint64_t negatives, uint64_t positives) : negatives_(negatives), positives_(positives) {}

  void add(double score, uint64_t negatives, uint64_t positives) {
    false_positives_ += negatives;
    true_positives_ += positives;
    if (negatives_ == 0 || positives_ == 0) return;
    const double rate = static_cast<double>(false_positives_) / static_cast<double>(negatives_);
    const double recall = static_cast<double>(true_positives_) / static_cast<double>(positives_);
    const bool last = false_positives_ == negatives_ && true_positives_ == positives_;
    if (!points_.empty() && !last && rate - points_.back().false_positive_rate < kStep &&
        recall - points_.back().true_positive_rate < kStep) {
      return;
    }
    points_.push_back(
        {score, rate, recall,
         static_cast<double>(true_positives_) / static_cast<double>(true_positives_ + false_positives_)});
  }

  std::vector<CurvePoint> take() { return std::move(points_); }

 private:
  static constexpr double kStep = 1.0 / 200;
  uint64_t negatives_, positives_, false_positives_ = 0, true_positives_ = 0;
  std::vector<CurvePoint> points_;
};

template <typename Score>
std::pair<Score, Score> extremes(const ClassImages<Score>& images) {
  const size_t pixels = images.height * images.width;
  Score lowest = std::numeric_limits<Score>::max(), highest = std::numeric_limits<Score>::lowest();
  for (size_t n = 0; n < images.maps.size(); ++n) {
    for (size_t i = 0; i < pixels; ++i) {
      const Score score = images.maps[n][i];
      if (!std::isfinite(score)) {
        throw std::invalid_argument("Expected finite map values but map " + std::to_string(n) + " holds " +
                                    std::to_string(score) + " in row " + std::to_string(i / images.width) +
                                    ", column " + std::to_string(i % images.width));
      }
      lowest = std::min(lowest, score);
      highest = std::max(highest, score);
    }
  }
  return {lowest, highest};
}

template <typename Score>
std::vector<std::vector<double>> region_scores(const ClassImages<Score>& images, const Regions& regions,
                                               bool squash) {
  const size_t pixels = images.height * images.width;
  std::vector<std::vector<double>> scores(regions.areas.size());
  for (size_t n = 0; n < images.maps.size(); ++n) {
    for (size_t i = 0; i < pixels; ++i) {
      const uint32_t region = regions.of_pixel[n * pixels + i];
      if (region == 0) continue;
      const Score score = images.maps[n][i];
      scores[region - 1].push_back(static_cast<double>(squash ? squashed(score) : score));
    }
  }
  for (auto& each : scores) std::sort(each.begin(), each.end(), std::greater<>());
  return scores;
}

template <typename Score>
void pixel_metrics(const ClassImages<Score>& images, Mode mode, const Limits& limits,
                   const std::function<bool()>& stop, ClassMetrics& metrics) {
  const auto [lowest, highest] = extremes(images);
  const Regions regions = label_regions(images.masks, images.height, images.width);
  uint64_t positives = 0;
  std::vector<double> weights;
  for (const uint64_t area : regions.areas) {
    positives += area;
    weights.push_back(1 / static_cast<double>(area));
  }
  const uint64_t negatives = regions.of_pixel.size() - positives;
  const bool squash =
      mode == Mode::kAnomalib && outside_unit(static_cast<double>(lowest), static_cast<double>(highest));

  ModeRanking<Score> ranking(mode, negatives, positives, squash);
  CurveSampler sampler(negatives, positives);
  OverlapCurve overlap(negatives, regions.areas.size(), limits.rate, mode == Mode::kMvtec);
  SteppedOverlap<Score> stepped(lowest, highest, mode == Mode::kAder ? kAderSteps : kDiadSteps, negatives,
                                regions.areas.size());
  SteppedF1<Score> stepped_f1(lowest, highest, positives);
  ResampledOverlap resampled(
      negatives,
      mode == Mode::kAnomalib ? region_scores(images, regions, squash) : std::vector<std::vector<double>>{},
      limits.rate);
  SquashedGroups<Score> squashed_groups(squash, [&](const ScoreGroup<Score>& group) {
    resampled.add(static_cast<double>(group.score), group.negatives);
  });

  const size_t capacity = limits.scratch_bytes / (2 * (sizeof(Score) == 4 ? 8 : 16));
  ScoreGroups<Score> groups(images.maps, images.height * images.width, regions.of_pixel, weights, capacity,
                            stop);
  groups.descend([&](const ScoreGroup<Score>& group) {
    ranking.add(group);
    sampler.add(static_cast<double>(group.score), group.negatives, group.positives);
    if (mode == Mode::kExact || mode == Mode::kMvtec) overlap.add(group.negatives, group.region_shares);
    if (mode == Mode::kDiad || mode == Mode::kAder) stepped.add(group);
    if (mode == Mode::kAder) stepped_f1.add(group);
    if (mode == Mode::kAnomalib) squashed_groups.add(group);
  });

  const RankingMetrics found = ranking.finish();
  metrics.pixel_auroc = found.auroc;
  metrics.pixel_ap = found.ap;
  metrics.pixel_f1max = mode == Mode::kAder ? stepped_f1.best() : found.f1max;
  metrics.pixel_f1max_score = found.f1max_score;
  metrics.pixel_curve = sampler.take();
  switch (mode) {
    case Mode::kExact:
    case Mode::kMvtec:
      metrics.au_pro = overlap.area();
      break;
    case Mode::kDiad:
      metrics.au_pro = stepped.area(limits.rate, RateScale::kByLargest);
      break;
    case Mode::kAder:
      metrics.au_pro = stepped.area(limits.rate, RateScale::kByRange);
      break;
    case Mode::kAnomalib:
      squashed_groups.finish();
      metrics.au_pro = resampled.area(stop);
      break;
  }
}

// Scores of the mode if its pools fit the map, otherwise the maximum of the map.
template <typename Score>
std::vector<double> scores_of_maps(const ClassImages<Score>& images, Mode mode) {
  const auto [size, count] = mode == Mode::kDiad   ? std::pair<size_t, size_t>{8, 8}
                             : mode == Mode::kAder ? std::pair<size_t, size_t>{16, 1}
                                                   : std::pair<size_t, size_t>{1, 0};
  std::vector<double> scores;
  for (const Score* map : images.maps) {
    const std::optional<double> pooled = pooled_maximum(map, images.height, images.width, size, count);
    scores.push_back(pooled ? *pooled : *pooled_maximum(map, images.height, images.width, 1, 0));
  }
  return scores;
}

template <typename Score>
std::vector<uint8_t> labels_of_masks(const ClassImages<Score>& images) {
  std::vector<uint8_t> labels;
  const size_t pixels = images.height * images.width;
  for (const uint8_t* mask : images.masks)
    labels.push_back(std::any_of(mask, mask + pixels, [](uint8_t value) { return value != 0; }));
  return labels;
}

void image_metrics(std::span<const double> scores, std::span<const uint8_t> labels, Mode mode,
                   const std::function<bool()>& stop, ClassMetrics& metrics) {
  if (scores.size() != labels.size()) {
    throw std::invalid_argument("Expected one label per image score but received " +
                                std::to_string(scores.size()) + " scores and " +
                                std::to_string(labels.size()) + " labels");
  }
  if (scores.empty()) return;
  if (const auto bad =
          std::find_if(scores.begin(), scores.end(), [](double score) { return !std::isfinite(score); });
      bad != scores.end()) {
    throw std::invalid_argument("Expected finite image scores but score " +
                                std::to_string(bad - scores.begin()) + " is " + std::to_string(*bad));
  }
  std::vector<uint32_t> defective;
  for (const uint8_t label : labels) defective.push_back(label != 0 ? 1 : 0);
  const auto positives = static_cast<uint64_t>(std::count(defective.begin(), defective.end(), 1U));
  const auto [lowest, highest] = std::minmax_element(scores.begin(), scores.end());
  ModeRanking<double> ranking(mode, scores.size() - positives, positives,
                              mode == Mode::kAnomalib && outside_unit(*lowest, *highest));
  const double* const row = scores.data();
  const double weight = 1;
  ScoreGroups<double> groups({&row, 1}, scores.size(), defective, {&weight, 1}, scores.size(), stop);
  groups.descend([&](const ScoreGroup<double>& group) { ranking.add(group); });
  const RankingMetrics found = ranking.finish();
  metrics.image_auroc = found.auroc;
  metrics.image_ap = found.ap;
  metrics.image_f1max = found.f1max;
  metrics.image_f1max_score = found.f1max_score;
}

}  // namespace

std::optional<Mode> mode_of(std::string_view name) {
  constexpr std::pair<std::string_view, Mode> names[] = {{"exact", Mode::kExact},
                                                         {"diad", Mode::kDiad},
                                                         {"ader", Mode::kAder},
                                                         {"anomalib", Mode::kAnomalib},
                                                         {"mvtec", Mode::kMvtec}};
  for (const auto& [known, mode] : names) {
    if (known == name) return mode;
  }
  return std::nullopt;
}

template <typename Score>
ClassMetrics class_metrics(const ClassImages<Score>& images, Mode mode, const Limits& limits,
                           const std::function<bool()>& stop) {
  if (images.maps.size() != images.masks.size()) {
    throw std::invalid_argument("Expected one mask per map but received " +
                                std::to_string(images.maps.size()) + " maps and " +
                                std::to_string(images.masks.size()) + " masks");
  }
  ClassMetrics metrics;
  if (!images.maps.empty()) pixel_metrics(images, mode, limits, stop, metrics);
  const std::vector<double> scores =
      images.image_scores.empty() ? scores_of_maps(images, mode) : images.image_scores;
  // The published evaluation and ADer use only the labels of the resized masks. This requires a mask for
  // every image.
  const bool by_masks = images.image_labels.empty() || mode == Mode::kDiad || mode == Mode::kAder;
  const bool from_masks = by_masks && images.masks.size() == scores.size();
  image_metrics(scores, from_masks ? labels_of_masks(images) : images.image_labels, mode, stop, metrics);
  return metrics;
}

template ClassMetrics class_metrics(const ClassImages<float>&, Mode, const Limits&,
                                    const std::function<bool()>&);
template ClassMetrics class_metrics(const ClassImages<double>&, Mode, const Limits&,
                                    const std::function<bool()>&);

}  // namespace diad::metrics
