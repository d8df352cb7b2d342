#include "image_score.h"

#include <algorithm>

namespace diad::metrics {

namespace {

// Averages `size` neighbors along the rows; rows of `width` become rows of width - size + 1.
std::vector<double> average_rows(const std::vector<double>& values, size_t height, size_t width,
                                 size_t size) {
  const size_t shorter = width - size + 1;
  std::vector<double> averages(height * shorter);
  for (size_t y = 0; y < height; ++y) {
    for (size_t x = 0; x < shorter; ++x) {
      double sum = 0;
      for (size_t i = 0; i < size; ++i) sum += values[y * width + x + i];
      averages[y * shorter + x] = sum / static_cast<double>(size);
    }
  }
  return averages;
}

std::vector<double> average_columns(const std::vector<double>& values, size_t height, size_t width,
                                    size_t size) {
  const size_t lower = height - size + 1;
  std::vector<double> averages(lower * width, 0);
  for (size_t y = 0; y < lower; ++y) {
    double* const row = averages.data() + y * width;
    for (size_t i = 0; i < size; ++i) {
      for (size_t x = 0; x < width; ++x) row[x] += values[(y + i) * width + x];
    }
    for (size_t x = 0; x < width; ++x) row[x] /= static_cast<double>(size);
  }
  return averages;
}

}  // namespace

template <typename Score>
std::optional<double> pooled_maximum(const Score* map, size_t height, size_t width, size_t size,
                                     size_t count) {
  if (std::min(height, width) <= count * (size - 1)) return std::nullopt;
  std::vector<double> values(map, map + height * width);
  for (size_t pool = 0; pool < count; ++pool) {
    values = average_rows(values, height, width, size);
    width -= size - 1;
    values = average_columns(values, height, width, size);
    height -= size - 1;
  }
  return *std::max_element(values.begin(), values.end());
}

template std::optional<double> pooled_maximum(const float*, size_t, size_t, size_t, size_t);
template std::optional<double> pooled_maximum(const double*, size_t, size_t, size_t, size_t);

}  // namespace diad::metrics
