#include "cpu/group_norm.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/group_norm.h>
#include <ATen/ops/instance_norm.h>
#include <ATen/ops/silu.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "cpu/kernel_dispatch.h"
#include "support/mmap_pool.h"
#include "support/thread_pool.h"

// The loops below vectorize, and the dynamic loader selects the widest version the CPU supports. Not under
// ThreadSanitizer, whose runtime is not initialized at that time.
#if defined(__GNUC__) && !defined(__SANITIZE_THREAD__) && !defined(__clang__) && defined(__x86_64__) && \
    defined(__linux__)
#define DIAD_VECTORISED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define DIAD_VECTORISED
#endif

namespace diad {

namespace {

constexpr int64_t kRows = 64;  // pixels summed in float before the sums are added to a double
// Minimum number of values per thread.
constexpr int64_t kValuesToSum = 32768, kValuesToScale = 16384;

// Sums of (x - pivot) and of its square over `rows` pixels, per channel.
DIAD_VECTORISED void channel_sums(const float* x, const float* pivot, int64_t rows, int64_t channels,
                                  float* sum, float* square) {
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

DIAD_VECTORISED void scale_rows(const float* x, const float* scale, const float* offset, int64_t rows,
                                int64_t channels, float* y) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t c = 0; c < channels; ++c)
      y[row * channels + c] = x[row * channels + c] * scale[c] + offset[c];
  }
}

// y = v / (1 + exp(-v)), v = x * scale + offset. exp is 2^n times a polynomial of the remainder (Cephes
// coefficients, error below 2e-7).
DIAD_VECTORISED void scale_rows_silu(const float* x, const float* scale, const float* offset, int64_t rows,
                                     int64_t channels, float* y) {
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

// Rounds to the nearest bfloat16, ties to even; keeps NaN.
DIAD_VECTORISED void narrow(const float* from, int64_t count, uint16_t* to) {
  for (int64_t i = 0; i < count; ++i) {
    const auto bits = std::bit_cast<uint32_t>(from[i]);
    const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, quiet = (bits >> 16) | 0x40;
    to[i] = static_cast<uint16_t>((bits & 0x7FFFFFFF) > 0x7F800000 ? quiet : rounded);
  }
}

// Reads the pixels of a channels-last image as float.
class Pixels {
 public:
  explicit Pixels(const at::Tensor& x) : half_(x.scalar_type() == at::kBFloat16), data_(x.const_data_ptr()) {}

  // Returns `count` values starting at `first`: a pointer into the image, or into `copy` after conversion.
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

at::Tensor in_float(const at::Tensor& values) {
  return values.scalar_type() == at::kFloat && values.is_contiguous() ? values
                                                                      : values.to(at::kFloat).contiguous();
}

// Per-channel factors and offsets that normalize an image.
struct Coefficients {
  float *scale, *offset;
};

// Computes the coefficients of one image. sums, squares: per channel, of x minus the pivot. gain, base: null
// for 1 and 0. added is added to x; null for nothing.
void find_coefficients(const double* sums, const double* squares, const float* pivot, const float* added,
                       double pixels, int64_t channels, int64_t of_a_group, double eps, const float* gain,
                       const float* base, Coefficients to) {
  const auto within = static_cast<double>(of_a_group);
  for (int64_t first = 0; first < channels; first += of_a_group) {
    const int64_t last = first + of_a_group;
    const auto mean_of = [&](int64_t c) { return sums[c] / pixels + pivot[c] + (added ? added[c] : 0.0F); };
    double mean = 0, variance = 0;
    for (int64_t c = first; c < last; ++c) mean += mean_of(c);
    mean /= within;
    for (int64_t c = first; c < last; ++c) {
      const double between = mean_of(c) - mean;
      variance += (squares[c] - sums[c] * sums[c] / pixels) / pixels + between * between;
    }
    const double inverse = 1 / std::sqrt(std::max(variance / within, 0.0) + eps);
    for (int64_t c = first; c < last; ++c) {
      const double factor = gain ? inverse * gain[c] : inverse;
      to.scale[c] = static_cast<float>(factor);
      to.offset[c] =
          static_cast<float>((base ? base[c] : 0.0F) + ((added ? added[c] : 0.0F) - mean) * factor);
    }
  }
}

// x [N, C, H, W], not empty, float32 or bfloat16; shift, weight and bias hold C float values or are
// undefined.
at::Tensor normalized(const at::Tensor& x, const at::Tensor& shift, const at::Tensor& weight,
                      const at::Tensor& bias, const GroupNormShape& shape) {
  const at::Tensor input = x.contiguous(at::MemoryFormat::ChannelsLast);
  const int64_t images = x.size(0), channels = x.size(1), pixels = x.size(2) * x.size(3);
  at::Tensor output = pooled_empty(input.sizes(), input.scalar_type(), at::MemoryFormat::ChannelsLast);
  const int64_t chunks = (pixels + kRows - 1) / kRows;
  const Pixels in(input);
  const bool half = output.scalar_type() == at::kBFloat16;
  void* const out = output.mutable_data_ptr();
  const auto values_of = [](const at::Tensor& values) {
    return values.defined() ? values.const_data_ptr<float>() : nullptr;
  };
  const float *const gain = values_of(weight), *const base = values_of(bias), *const added = values_of(shift);
  const auto size_of_chunk = [&](int64_t chunk) { return std::min(kRows, pixels - chunk * kRows); };

  // Subtracts a pivot to avoid cancellation: the median of three pixels, so that one outlier does not matter.
  // The split is fixed, so that the result does not depend on the number of threads.
  const int64_t tasks = images * chunks;
  std::vector<float> space(static_cast<size_t>((2 * tasks + 3 * images) * channels));
  float *const sums = space.data(), *const squares = sums + tasks * channels,
               *const pivots = squares + tasks * channels, *const scale = pivots + images * channels,
               *const offset = scale + images * channels;
  for (int64_t image = 0; image < images; ++image) {
    std::vector<float> copies[3];
    const auto pixel = [&](int64_t index, std::vector<float>& copy) {
      return in.read((image * pixels + index) * channels, channels, copy);
    };
    const float *const a = pixel(0, copies[0]), *const b = pixel(pixels / 2, copies[1]),
                       *const c = pixel(pixels - 1, copies[2]);
    for (int64_t k = 0; k < channels; ++k) {
      pivots[image * channels + k] = std::max(std::min(a[k], b[k]), std::min(std::max(a[k], b[k]), c[k]));
    }
  }
  parallel_for(tasks, std::max<int64_t>(1, kValuesToSum / (kRows * channels)),
               [&](int64_t begin, int64_t end) {
                 std::vector<float> copy;
                 for (int64_t task = begin; task < end; ++task) {
                   const int64_t image = task / chunks, chunk = task % chunks, rows = size_of_chunk(chunk);
                   const float* const x_rows =
                       in.read((image * pixels + chunk * kRows) * channels, rows * channels, copy);
                   channel_sums(x_rows, pivots + image * channels, rows, channels, sums + task * channels,
                                squares + task * channels);
                 }
               });

  std::vector<double> totals(static_cast<size_t>(2 * channels));
  double *const sum = totals.data(), *const square = sum + channels;
  for (int64_t image = 0; image < images; ++image) {
    std::fill(totals.begin(), totals.end(), 0.0);
    for (int64_t task = image * chunks; task < (image + 1) * chunks; ++task) {
      for (int64_t c = 0; c < channels; ++c) {
        sum[c] += sums[task * channels + c];
        square[c] += squares[task * channels + c];
      }
    }
    const float* const of_image = added ? added + (shift.size(0) == 1 ? 0 : image) * channels : nullptr;
    find_coefficients(sum, square, pivots + image * channels, of_image, static_cast<double>(pixels), channels,
                      channels / shape.groups, shape.eps, gain, base,
                      {scale + image * channels, offset + image * channels});
  }

  auto* const with_silu = cpu_kernels() ? cpu_kernels()->rows.scale_silu : scale_rows_silu;
  auto* const apply = shape.silu ? with_silu : scale_rows;
  parallel_for(tasks, std::max<int64_t>(1, kValuesToScale / (kRows * channels)),
               [&](int64_t begin, int64_t end) {
                 std::vector<float> copy, result;
                 for (int64_t task = begin; task < end; ++task) {
                   const int64_t image = task / chunks, chunk = task % chunks, rows = size_of_chunk(chunk);
                   const int64_t first = (image * pixels + chunk * kRows) * channels, count = rows * channels;
                   if (half) result.resize(static_cast<size_t>(count));
                   apply(in.read(first, count, copy), scale + image * channels, offset + image * channels,
                         rows, channels, half ? result.data() : static_cast<float*>(out) + first);
                   if (half) narrow(result.data(), count, static_cast<uint16_t*>(out) + first);
                 }
               });
  return output;
}

bool is_image(const at::Tensor& x) {
  return x.dim() == 4 && x.numel() > 0 && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16);
}

}  // namespace

bool is_per_channel(const at::Tensor& shift, const at::Tensor& x) {
  return x.dim() == 4 && shift.dim() == 4 && (shift.size(0) == 1 || shift.size(0) == x.size(0)) &&
         shift.size(1) == x.size(1) && shift.size(2) == 1 && shift.size(3) == 1 &&
         (shift.scalar_type() == x.scalar_type() || shift.scalar_type() == at::kBFloat16);
}

at::Tensor group_norm(const at::Tensor& x, const std::optional<at::Tensor>& shift, const at::Tensor& weight,
                      const at::Tensor& bias, const GroupNormShape& shape) {
  if (shift && !is_per_channel(*shift, x)) return group_norm(x + *shift, std::nullopt, weight, bias, shape);
  const bool fits = is_image(x) && shape.groups > 0 && x.size(1) % shape.groups == 0 &&
                    weight.numel() == x.size(1) && bias.numel() == x.size(1);
  if (!fits) {
    const at::Tensor y = at::group_norm(shift ? x + *shift : x, shape.groups, weight, bias, shape.eps);
    return shape.silu ? at::silu(y) : y;
  }
  return normalized(x, shift ? in_float(*shift) : at::Tensor(), in_float(weight), in_float(bias), shape);
}

at::Tensor instance_norm(const at::Tensor& x, double eps, bool silu) {
  if (!is_image(x)) {
    const at::Tensor y = at::instance_norm(x, {}, {}, {}, {}, /*use_input_stats=*/true, /*momentum=*/0, eps,
                                           /*cudnn_enabled=*/false);
    return silu ? at::silu(y) : y;
  }
  return normalized(x, {}, {}, {}, {x.size(1), eps, silu});
}

}  // namespace diad
