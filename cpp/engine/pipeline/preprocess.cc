#include "pipeline/preprocess.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <tuple>

#include "support/thread_pool.h"

namespace diad {

namespace {

constexpr int kPrecisionBits = 32 - 8 - 2;
constexpr int32_t kHalf = 1 << (kPrecisionBits - 1);

// Input samples of one output sample, with fixed-point weights.
struct Taps {
  uint32_t first = 0;
  std::vector<int32_t> weights;
};

std::vector<Taps> bilinear_taps(uint32_t from, uint32_t to) {
  const double scale = static_cast<double>(from) / to;
  const double stretch = std::max(scale, 1.0);
  std::vector<Taps> taps(to);
  std::vector<double> weights;
  for (uint32_t i = 0; i < to; ++i) {
    const double center = (i + 0.5) * scale;
    const int low = std::max(0, static_cast<int>(center - stretch + 0.5));
    const int high = std::min(static_cast<int>(from), static_cast<int>(center + stretch + 0.5));
    weights.clear();
    double total = 0;
    for (int j = low; j < high; ++j) {
      const double distance = std::abs((j - center + 0.5) * (1.0 / stretch));
      weights.push_back(distance < 1.0 ? 1.0 - distance : 0.0);
      total += weights.back();
    }
    taps[i].first = static_cast<uint32_t>(low);
    for (const double weight : weights) {
      const double share = total == 0 ? weight : weight / total;
      taps[i].weights.push_back(
          static_cast<int32_t>(share * (1 << kPrecisionBits) + 0.5));  // weights are not negative
    }
  }
  return taps;
}

uint8_t clip8(int32_t value) { return static_cast<uint8_t>(std::clamp(value >> kPrecisionBits, 0, 255)); }

// Calls each(row) for all rows in parallel; `values` is the number of values read per row.
template <typename Each>
void in_rows(uint32_t rows, size_t values, const Each& each) {
  constexpr size_t kValuesOfAThread = 1 << 17;
  const auto grain =
      static_cast<int64_t>(std::max<size_t>(1, kValuesOfAThread / std::max<size_t>(1, values)));
  parallel_for(rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) each(static_cast<size_t>(row));
  });
}

// [height, width, 3] -> [height, to, 3].
std::vector<uint8_t> horizontal_pass(std::span<const uint8_t> rgb, uint32_t width, uint32_t height,
                                     uint32_t to) {
  const std::vector<Taps> taps = bilinear_taps(width, to);
  std::vector<uint8_t> result(static_cast<size_t>(height) * to * 3);
  in_rows(height, static_cast<size_t>(width) * 3, [&](size_t y) {
    const uint8_t* row = rgb.data() + y * width * 3;
    uint8_t* out = result.data() + y * to * 3;
    for (const Taps& tap : taps) {
      int32_t r = kHalf, g = kHalf, b = kHalf;
      const uint8_t* in = row + static_cast<size_t>(tap.first) * 3;
      for (const int32_t weight : tap.weights) {
        r += in[0] * weight;
        g += in[1] * weight;
        b += in[2] * weight;
        in += 3;
      }
      *out++ = clip8(r);
      *out++ = clip8(g);
      *out++ = clip8(b);
    }
  });
  return result;
}

// [height, width, 3] -> [to, width, 3].
std::vector<uint8_t> vertical_pass(std::span<const uint8_t> rgb, uint32_t width, uint32_t height,
                                   uint32_t to) {
  const size_t stride = static_cast<size_t>(width) * 3;
  std::vector<uint8_t> result(to * stride);
  const std::vector<Taps> taps = bilinear_taps(height, to);
  in_rows(to, stride * taps[0].weights.size(), [&](size_t y) {
    std::vector<int32_t> sums(stride, kHalf);
    const uint8_t* row = rgb.data() + taps[y].first * stride;
    for (const int32_t weight : taps[y].weights) {
      for (size_t i = 0; i < stride; ++i) sums[i] += row[i] * weight;
      row += stride;
    }
    std::transform(sums.begin(), sums.end(), result.begin() + static_cast<std::ptrdiff_t>(y * stride), clip8);
  });
  return result;
}

}  // namespace

std::vector<uint8_t> to_rgb(const Frame& frame) {
  const size_t count = static_cast<size_t>(frame.width) * frame.height;
  std::vector<uint8_t> rgb(count * 3);
  for (size_t i = 0; i < count; ++i) {
    const uint8_t* pixel = frame.pixels.data() + i * frame.channels;
    for (size_t c = 0; c < 3; ++c) rgb[3 * i + c] = pixel[frame.channels == 1 ? 0 : c];
  }
  return rgb;
}

std::vector<uint8_t> resize_rgb(std::span<const uint8_t> rgb, uint32_t width, uint32_t height,
                                uint32_t size) {
  if (width == size && height == size) return {rgb.begin(), rgb.end()};
  if (width == size) return vertical_pass(rgb, size, height, size);
  std::vector<uint8_t> narrow = horizontal_pass(rgb, width, height, size);
  return height == size ? narrow : vertical_pass(narrow, size, height, size);
}

std::vector<uint8_t> resize_frame(const Frame& frame, uint32_t size) {
  if (frame.channels == 3) return resize_rgb(frame.pixels, frame.width, frame.height, size);
  return resize_rgb(to_rgb(frame), frame.width, frame.height, size);
}

at::Tensor normalized(std::span<const uint8_t> rgb, const Manifest& manifest) {
  const int64_t size = manifest.image_size;
  at::Tensor image = at::empty({1, 3, size, size}, at::kFloat);
  auto* out = image.mutable_data_ptr<float>();
  const auto plane = static_cast<size_t>(size * size);
  for (size_t c = 0; c < 3; ++c) {
    for (size_t i = 0; i < plane; ++i) {
      out[c * plane + i] = (static_cast<float>(rgb[3 * i + c]) / 255.0F - manifest.mean[c]) / manifest.std[c];
    }
  }
  return image;
}

at::Tensor normalized(const at::Tensor& rgb, const Manifest& manifest) {
  // Divides by tensors: a device can turn division by a scalar into multiplication by its reciprocal.
  const auto of_channels = [&rgb](std::initializer_list<float> values) {
    return at::tensor(values, at::kFloat).reshape({-1, 1, 1}).to(rgb.device());
  };
  const at::Tensor levels =
      rgb.permute({0, 3, 1, 2}).to(at::kFloat, false, false, at::MemoryFormat::Contiguous) /
      of_channels({255});
  const auto& [mean, deviation] = std::tie(manifest.mean, manifest.std);
  return (levels - of_channels({mean[0], mean[1], mean[2]})) /
         of_channels({deviation[0], deviation[1], deviation[2]});
}

std::vector<uint8_t> denormalized(const at::Tensor& image, const Manifest& manifest) {
  const at::Tensor dense = image.contiguous();
  const auto* values = dense.const_data_ptr<float>();
  const auto plane = static_cast<size_t>(manifest.image_size * manifest.image_size);
  std::vector<uint8_t> rgb(plane * 3);
  for (size_t c = 0; c < 3; ++c) {
    for (size_t i = 0; i < plane; ++i) {
      const float level = values[c * plane + i] * manifest.std[c] + manifest.mean[c];
      rgb[3 * i + c] = static_cast<uint8_t>(std::nearbyint(std::clamp(level, 0.0F, 1.0F) * 255.0F));
    }
  }
  return rgb;
}

}  // namespace diad
