// The seven metrics of one class of a data set, exactly or as other tools compute them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace diad::metrics {

// Whose rules hold; docs/evaluation.md has them with their sources.
enum class Mode { kExact, kDiad, kAder, kAnomalib, kMvtec };

std::optional<Mode> mode_of(std::string_view name);

// Images of one class. Maps and masks belong together pairwise; image scores and labels too. Either pair may
// be empty.
template <typename Score>
struct ClassImages {
  std::span<const Score* const> maps;     // each height * width
  std::span<const uint8_t* const> masks;  // each height * width, non-zero is defect
  size_t height = 0, width = 0;
  std::vector<double> image_scores;   // empty: from the maps, as the mode has it
  std::vector<uint8_t> image_labels;  // non-zero is defective; empty: from the masks
};

struct Limits {
  double rate = 0.3;  // false positive rate up to which the per-region overlap is integrated
  size_t scratch_bytes = size_t{256} << 20;  // of sorting; see score_groups.h
};

// A point of a pixel curve, when the scores at or above `score` are called defective.
struct CurvePoint {
  double score, false_positive_rate, true_positive_rate, precision;
};

// Undefined values are absent.
struct ClassMetrics {
  std::optional<double> image_auroc, image_ap, image_f1max, image_f1max_score;
  std::optional<double> pixel_auroc, pixel_ap, pixel_f1max, pixel_f1max_score;
  std::optional<double> au_pro;
  std::vector<CurvePoint> pixel_curve;  // at most a few hundred points, of pixels with defects and without
};

// Memory beside the images: 4 bytes a pixel for regions, limits.scratch_bytes for sorting, and in mode
// kAnomalib 32 bytes for each distinct background score of the integrated range.
//
// stop: asked now and then; true throws Stopped. Throws std::invalid_argument for a score that is not finite
// or lengths that do not fit.
template <typename Score>
ClassMetrics class_metrics(const ClassImages<Score>& images, Mode mode, const Limits& limits,
                           const std::function<bool()>& stop);

extern template ClassMetrics class_metrics(const ClassImages<float>&, Mode, const Limits&,
                                           const std::function<bool()>&);
extern template ClassMetrics class_metrics(const ClassImages<double>&, Mode, const Limits&,
                                           const std::function<bool()>&);

}  // namespace diad::metrics
