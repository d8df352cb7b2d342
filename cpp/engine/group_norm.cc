#include "group_norm.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "mapped_allocator.h"

// The loops below vectorise; the widest version the CPU has is chosen when the library is loaded: under ThreadSanitizer that is before its
// run-time library can work.
#if defined(__GNUC__) && !defined(__SANITIZE_THREAD__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__)
#define DIAD_VECTORISED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define DIAD_VECTORISED
#endif

namespace diad {

namespace {

constexpr int64_t kRows = 64;  // pixels whose sums are kept in float before they go to double

// Sums of (x - pivot) and of its square over `rows` pixels, per channel.
DIAD_VECTORISED void channel_sums(const float* x, const float* pivot, int64_t rows, int64_t channels, float* sum, float* square) {
  for (int64_t c = 0; c < channels; ++c) sum[c] = square[c] = 0;
  for (int64_t row = 0; row < rows; ++row) {
    const float* pixel = x + row * channels;
    for (int64_t c = 0; c < channels; ++c) {
      const float d = pixel[c] - pivot[c];
      sum[c] += d;
      square[c] += d * d;
    }
  }
}

DIAD_VECTORISED void scale_rows(const float* x, const float* scale, const float* offset, int64_t rows, int64_t channels, float* y) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t c = 0; c < channels; ++c) y[row * channels + c] = x[row * channels + c] * scale[c] + offset[c];
  }
}

// y = v / (1 + exp(-v)), v = x * scale + offset. exp by 2^n times a polynomial of the rest (Cephes' coefficients, error below 2e-7).
DIAD_VECTORISED void scale_rows_silu(const float* x, const float* scale, const float* offset, int64_t rows, int64_t channels, float* y) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t c = 0; c < channels; ++c) {
      const float v = x[row * channels + c] * scale[c] + offset[c];
      const float t = std::min(std::max(-v, -87.0F), 88.0F);
      const float shifted = t * 1.44269504F + 12582912.0F;  // rounds to an integer in the low bits
      const float n = shifted - 12582912.0F;
      const float r = (t - n * 0.693359375F) - n * -2.12194440e-4F;
      float p = 1.9875691500e-4F;
      p = p * r + 1.3981999507e-3F;
      p = p * r + 8.3334519073e-3F;
      p = p * r + 4.1665795894e-2F;
      p = p * r + 1.6666665459e-1F;
      p = p * r + 5.0000001201e-1F;
      p = p * r * r + r + 1.0F;
      const float e = p * std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
      y[row * channels + c] = v / (1.0F + e);
    }
  }
}

DIAD_VECTORISED void widen(const uint16_t* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = std::bit_cast<float>(static_cast<uint32_t>(from[i]) << 16);
}

// To the nearest bfloat16, ties to even; NaN stays one.
DIAD_VECTORISED void narrow(const float* from, int64_t count, uint16_t* to) {
  for (int64_t i = 0; i < count; ++i) {
    const auto bits = std::bit_cast<uint32_t>(from[i]);
    const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, quiet = (bits >> 16) | 0x40;
    to[i] = static_cast<uint16_t>((bits & 0x7FFFFFFF) > 0x7F800000 ? quiet : rounded);
  }
}

// The pixels of a channels-last picture in float, whatever they are stored in.
class Pixels {
 public:
  explicit Pixels(const at::Tensor& x) : half_(x.scalar_type() == at::kBFloat16), data_(x.const_data_ptr()) {}

  // `count` values from `first` on: the picture's own, or copies in `copy`.
  const float* read(int64_t first, int64_t count, std::vector<float>& copy) const {
    if (!half_) return static_cast<const float*>(data_) + first;
    copy.resize(static_cast<size_t>(count));
    widen(static_cast<const uint16_t*>(data_) + first, count, copy.data());
    return copy.data();
  }

 private:
  bool half_;
  const void* data_;
};

}  // namespace

bool is_value_a_channel(const at::Tensor& shift, const at::Tensor& x) {
  return x.dim() == 4 && shift.dim() == 4 && (shift.size(0) == 1 || shift.size(0) == x.size(0)) && shift.size(1) == x.size(1) &&
         shift.size(2) == 1 && shift.size(3) == 1 && (shift.scalar_type() == x.scalar_type() || shift.scalar_type() == at::kBFloat16);
}

at::Tensor group_norm(const at::Tensor& x, const std::optional<at::Tensor>& shift, const at::Tensor& weight, const at::Tensor& bias,
                      const GroupNormShape& shape) {
  if (shift && !is_value_a_channel(*shift, x)) return group_norm(x + *shift, std::nullopt, weight, bias, shape);
  const bool fits = x.dim() == 4 && x.numel() > 0 && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16) &&
                    shape.groups > 0 && x.size(1) % shape.groups == 0 && weight.numel() == x.size(1) && bias.numel() == x.size(1);
  if (!fits) {
    const at::Tensor y = at::group_norm(shift ? x + *shift : x, shape.groups, weight, bias, shape.eps);
    return shape.silu ? at::silu(y) : y;
  }
  const at::Tensor input = x.contiguous(at::MemoryFormat::ChannelsLast);
  const int64_t pictures = x.size(0), channels = x.size(1), pixels = x.size(2) * x.size(3);
  at::Tensor output = pooled_empty(input.sizes(), input.scalar_type(), at::MemoryFormat::ChannelsLast);
  const int64_t chunks = (pixels + kRows - 1) / kRows, per_group = channels / shape.groups;
  const auto in_float = [](const at::Tensor& values) { return values.to(at::kFloat).contiguous(); };
  const at::Tensor shifts = shift ? in_float(shift->reshape({shift->size(0), channels})) : at::Tensor();
  const at::Tensor gains = in_float(weight), bases = in_float(bias);
  const Pixels in(input);
  const bool half = output.scalar_type() == at::kBFloat16;
  void* const out = output.mutable_data_ptr();
  const auto* gain = gains.const_data_ptr<float>();
  const auto* base = bases.const_data_ptr<float>();
  const auto size_of_chunk = [&](int64_t chunk) { return std::min(kRows, pixels - chunk * kRows); };

  // Sums of x less its first pixel, which keeps them small beside the variance; a fixed split, so that thread counts change nothing.
  const auto width = static_cast<size_t>(channels);
  std::vector<float> sums(static_cast<size_t>(pictures * chunks) * width), squares(sums.size());
  std::vector<float> pivots(static_cast<size_t>(pictures) * width);
  for (int64_t picture = 0; picture < pictures; ++picture) {
    std::vector<float> copy;
    const float* const first = in.read(picture * pixels * channels, channels, copy);
    std::copy(first, first + channels, &pivots[static_cast<size_t>(picture) * width]);
  }
  at::parallel_for(0, pictures * chunks, std::max<int64_t>(1, 32768 / (kRows * channels)), [&](int64_t begin, int64_t end) {
    std::vector<float> copy;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t picture = task / chunks, chunk = task % chunks, rows = size_of_chunk(chunk);
      const float* const x_rows = in.read((picture * pixels + chunk * kRows) * channels, rows * channels, copy);
      const size_t at = static_cast<size_t>(task) * width;
      channel_sums(x_rows, &pivots[static_cast<size_t>(picture) * width], rows, channels, &sums[at], &squares[at]);
    }
  });

  std::vector<float> scale(static_cast<size_t>(pictures) * width), offset(scale.size());
  for (int64_t picture = 0; picture < pictures; ++picture) {
    std::vector<double> sum(width), square(width);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const size_t at = static_cast<size_t>(picture * chunks + chunk) * width;
      for (size_t c = 0; c < width; ++c) {
        sum[c] += sums[at + c];
        square[c] += squares[at + c];
      }
    }
    const float* pivot = &pivots[static_cast<size_t>(picture) * width];
    const float* added = shift ? shifts.const_data_ptr<float>() + (shifts.size(0) == 1 ? 0 : picture) * channels : nullptr;
    const auto count = static_cast<double>(pixels);
    for (int64_t group = 0; group < shape.groups; ++group) {
      const auto first = static_cast<size_t>(group * per_group), last = first + static_cast<size_t>(per_group);
      const auto mean_of = [&](size_t c) { return sum[c] / count + pivot[c] + (added ? added[c] : 0.0F); };
      double mean = 0, variance = 0;
      for (size_t c = first; c < last; ++c) mean += mean_of(c) / static_cast<double>(per_group);
      for (size_t c = first; c < last; ++c) {
        const double within = (square[c] - sum[c] * sum[c] / count) / count, between = mean_of(c) - mean;
        variance += (within + between * between) / static_cast<double>(per_group);
      }
      const double inverse = 1 / std::sqrt(std::max(variance, 0.0) + shape.eps);
      for (size_t c = first; c < last; ++c) {
        const size_t at = static_cast<size_t>(picture) * width + c;
        scale[at] = static_cast<float>(inverse * gain[c]);
        offset[at] = static_cast<float>(base[c] + ((added ? added[c] : 0.0F) - mean) * inverse * gain[c]);
      }
    }
  }

  at::parallel_for(0, pictures * chunks, std::max<int64_t>(1, 16384 / (kRows * channels)), [&](int64_t begin, int64_t end) {
    std::vector<float> copy, result;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t picture = task / chunks, chunk = task % chunks, rows = size_of_chunk(chunk);
      const int64_t first = (picture * pixels + chunk * kRows) * channels, count = rows * channels;
      auto* const apply = shape.silu ? scale_rows_silu : scale_rows;
      if (half) result.resize(static_cast<size_t>(count));
      apply(in.read(first, count, copy), &scale[static_cast<size_t>(picture) * width], &offset[static_cast<size_t>(picture) * width], rows,
            channels, half ? result.data() : static_cast<float*>(out) + first);
      if (half) narrow(result.data(), count, static_cast<uint16_t*>(out) + first);
    }
  });
  return output;
}

}  // namespace diad
