#include "anomalib_curves.h"

#include <algorithm>
#include <limits>

namespace diad::metrics {

namespace {

// Default tolerances of torch.allclose.
bool close(double a, double b) { return std::abs(a - b) <= 1e-8 + 1e-5 * std::abs(b); }

// Linear interpolation at x as in the tool: uses the interval before the first point not below x, and adds
// float32's epsilon to the denominator.
double interpolate(const std::vector<double>& xs, const std::vector<double>& ys, double x, size_t& interval) {
  while (interval + 2 < xs.size() && xs[interval + 1] < x) ++interval;
  const double width = std::numeric_limits<float>::epsilon() + (xs[interval + 1] - xs[interval]);
  return ys[interval] + (ys[interval + 1] - ys[interval]) / width * (x - xs[interval]);
}

}  // namespace

void ResampledOverlap::add(double score, uint64_t negatives) {
  if (negatives_ == 0) return;
  false_positives_ += negatives;
  if (rate(false_positives_) <= limit_) ++common_points_;
  // Two groups beyond the limit: the first can be needed as a point, the second ends the curve.
  const bool wanted =
      background_.size() < 2 || rate(background_counts_[background_counts_.size() - 2]) <= limit_;
  if (negatives > 0 && wanted) {
    background_.push_back(score);
    background_counts_.push_back(false_positives_);
  }
}

// Returns the points of the region's curve from (0, 0) to the last one at the first rate above the limit.
ResampledOverlap::Curve ResampledOverlap::region_curve(std::span<const double> scores) const {
  Curve curve{{0}, {0}};
  size_t found = 0, b = 0;
  uint64_t false_positives = 0;
  double beyond = 2;  // first rate above the limit
  while (found < scores.size() || b < background_.size()) {
    const double score = found == scores.size()    ? background_[b]
                         : b == background_.size() ? scores[found]
                                                   : std::max(background_[b], scores[found]);
    if (b < background_.size() && background_[b] == score) false_positives = background_counts_[b++];
    while (found < scores.size() && scores[found] == score) ++found;
    if (rate(false_positives) > beyond) break;
    if (rate(false_positives) > limit_) beyond = rate(false_positives);
    curve.rates.push_back(rate(false_positives));
    curve.overlaps.push_back(static_cast<double>(found) / static_cast<double>(scores.size()));
  }
  return curve;
}

std::optional<double> ResampledOverlap::area(const std::function<bool()>& stop) {
  if (negatives_ == 0 || region_scores_.empty() || common_points_ < 2) return std::nullopt;
  const size_t points = common_points_;
  const auto last = static_cast<double>(points - 1);
  std::vector<double> rates(points, 0), overlaps(points, 0);
  for (const std::vector<double>& scores : region_scores_) {
    if (stop()) throw Stopped();
    Curve curve = region_curve(scores);
    // Points [0, within) lie at or below the limit.
    const auto above = std::upper_bound(curve.rates.begin(), curve.rates.end(), limit_);
    auto within = static_cast<size_t>(above - curve.rates.begin());
    const size_t first_at_limit = static_cast<size_t>(
        std::lower_bound(curve.rates.begin(), curve.rates.end(), limit_) - curve.rates.begin());
    if (curve.rates[within - 1] == 0)
      within = curve.rates.size();  // no point between 0 and the limit: use the first rate above it
    std::vector<double> index(within);
    for (size_t i = 0; i < within; ++i) index[i] = static_cast<double>(i);
    double slope = 0;
    const bool cut = !close(curve.rates[within - 1], limit_) && first_at_limit < curve.rates.size();
    if (cut) {
      const double high = curve.rates[first_at_limit], low = curve.rates[first_at_limit - 1];
      slope = 1 - (high - limit_) / (high - low);
      index.push_back(static_cast<double>(first_at_limit));
      const double overlap = curve.overlaps[first_at_limit];
      curve.rates.resize(within);
      curve.overlaps.resize(within);
      curve.rates.push_back(high);
      curve.overlaps.push_back(overlap);
    } else {
      curve.rates.resize(within);
      curve.overlaps.resize(within);
    }
    const double largest = *std::max_element(index.begin(), index.end());
    for (double& each : index) each = each / largest * last;
    const double end =
        cut ? index[index.size() - 2] + (index.back() - index[index.size() - 2]) * slope : last;
    size_t interval = 0;
    for (size_t i = 0; i + 1 < points; ++i) {
      overlaps[i] += interpolate(index, curve.overlaps, static_cast<double>(i), interval);
      rates[i] += interpolate(index, curve.rates, static_cast<double>(i), interval);
    }
    interval = 0;
    overlaps[points - 1] += interpolate(index, curve.overlaps, end, interval);
    rates[points - 1] += interpolate(index, curve.rates, end, interval);
  }
  const auto regions = static_cast<double>(region_scores_.size());
  double area = 0;
  for (size_t i = 1; i < points; ++i) area += (rates[i] - rates[i - 1]) * (overlaps[i] + overlaps[i - 1]) / 2;
  const double result = area / regions / rates.back();
  return std::isfinite(result) ? std::optional(result) : std::nullopt;
}

}  // namespace diad::metrics
