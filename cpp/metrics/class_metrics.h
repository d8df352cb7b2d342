// The seven metrics of one class of a data set, exact or as other tools compute them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace diad::metrics {

// Tool whose rules apply; docs/reference/metrics.md lists the rules with their sources.
enum class Mode { kExact, kDiad, kAder, kAnomalib, kMvtec };

std::optional<Mode> mode_of(std::string_view name);

// Images of one class. Maps and masks correspond by index, as do image scores and labels. Either pair can be
// empty.
template <typename Score>
struct ClassImages {
  std::span<const Score* const> maps;     // each height * width
  std::span<const uint8_t* const> masks;  // each height * width, nonzero is defect
  size_t height = 0, width = 0;
  std::vector<double> image_scores;   // empty: computed from the maps by the mode's rule
  std::vector<uint8_t> image_labels;  // nonzero is defective; empty: from the masks
};

struct Limits {
  double rate = 0.3;  // false positive rate up to which the per-region overlap is integrated
  size_t scratch_bytes = size_t{256} << 20;  // memory for sorting; see score_groups.h
};

// A point of a pixel curve, with scores at or above `score` classified as defective.
struct CurvePoint {
  double score, false_positive_rate, true_positive_rate, precision;
};

// Undefined values are empty.
struct ClassMetrics {
  std::optional<double> image_auroc, image_ap, image_f1max, image_f1max_score;
  std::optional<double> pixel_auroc, pixel_ap, pixel_f1max, pixel_f1max_score;
  std::optional<double> au_pro;
  // At most a few hundred points; empty without defect or without background pixels.
  std::vector<CurvePoint> pixel_curve;
};

// Memory in addition to the images: 4 bytes per pixel for regions, limits.scratch_bytes for sorting, and in
// mode kAnomalib 32 bytes per distinct background score of the integrated range.
//
// stop: polled; true throws Stopped. Throws std::invalid_argument for non-finite scores or lengths that do
// not match.
template <typename Score>
ClassMetrics class_metrics(const ClassImages<Score>& images, Mode mode, const Limits& limits,
                           const std::function<bool()>& stop);

extern template ClassMetrics class_metrics(const ClassImages<float>&, Mode, const Limits&,
                                           const std::function<bool()>&);
extern template ClassMetrics class_metrics(const ClassImages<double>&, Mode, const Limits&,
                                           const std::function<bool()>&);

}  // namespace diad::metrics
