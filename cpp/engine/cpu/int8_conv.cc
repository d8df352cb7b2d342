#include "cpu/int8_conv.h"

#include <ATen/EmptyTensor.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/amax.h>
#include <ATen/ops/round.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/conv_tiling.h"
#include "cpu/kernel_dispatch.h"
#include "support/mmap_pool.h"
#include "support/thread_pool.h"

namespace diad {

namespace {

using kernels::kBlock;
using kernels::Quantization;
using kernels::QuantizedArguments;
using kernels::Range;

constexpr int64_t kFour = 4;  // bytes multiplied at a time
constexpr int64_t kLeastChannels = 16;
constexpr int64_t kMostProducts = 65536;  // the sum of as many products of 255 * 127 fits into 32 bits
constexpr float kGreatestWeight = 127;
constexpr float kGreatestInput = 255;
constexpr float kLeastScale = 1e-30F;

Quantization quantization_of(const Range& range) {
  const float scale = std::max((range.greatest - range.least) / kGreatestInput, kLeastScale);
  if (!std::isfinite(scale + range.poison)) return {std::nanf(""), 0};
  return {scale, static_cast<int32_t>(std::lround(-range.least / scale))};
}

// Computes one quantization per image of `each` values.
std::vector<Quantization> quantizations_of(const float* x, int64_t images, int64_t each) {
  constexpr int64_t kPiece = 1 << 15;
  const int64_t pieces = (each + kPiece - 1) / kPiece;
  std::vector<Range> ranges(static_cast<size_t>(images * pieces));
  parallel_for(images * pieces, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % pieces * kPiece;
      cpu_kernels()->quantized->extend(x + i / pieces * each + first, std::min(kPiece, each - first),
                                       ranges[static_cast<size_t>(i)]);
    }
  });
  std::vector<Quantization> result;
  for (int64_t image = 0; image < images; ++image) {
    Range whole{};
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const Range& part = ranges[static_cast<size_t>(image * pieces + piece)];
      whole = {std::min(whole.least, part.least), std::max(whole.greatest, part.greatest),
               whole.poison + part.poison};
    }
    result.push_back(quantization_of(whole));
  }
  return result;
}

}  // namespace

bool QuantizedConv::available() { return cpu_kernels() != nullptr && cpu_kernels()->quantized != nullptr; }

bool QuantizedConv::takes(const at::Tensor& weight) {
  return available() && weight.scalar_type() == at::kFloat && weight.size(1) % kFour == 0 &&
         weight.size(1) >= kLeastChannels && weight.size(0) >= kLeastChannels &&
         weight.numel() / weight.size(0) <= kMostProducts;
}

QuantizedConv::QuantizedConv(const at::Tensor& weight, const std::optional<at::Tensor>& bias, Shape shape)
    : shape_(shape),
      out_channels_(weight.size(0)),
      channels_(weight.size(1)),
      height_(weight.size(2)),
      width_(weight.size(3)) {
  const int64_t filled = blocks_of(out_channels_) * kBlock, blocks = filled / kBlock;
  const at::Tensor flat = weight.flatten(1);
  const at::Tensor scale = (at::amax(flat.abs(), 1) / kGreatestWeight).clamp_min(kLeastScale);
  // [K, C, h, w] -> [K / 32, 32, C / 4, 4, h, w] -> [K / 32, h, w, C / 4, 32, 4], one block of channels at a
  // time
  weights_ = at::detail::empty_generic({blocks, height_, width_, channels_ / kFour, kBlock, kFour},
                                       mapped_allocator(), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                       at::kChar, std::nullopt);
  sums_ = at::zeros({filled}, at::kInt);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = block * kBlock, count = std::min(kBlock, out_channels_ - first);
    const at::Tensor rounded =
        at::round(flat.narrow(0, first, count) / scale.narrow(0, first, count).unsqueeze(1));
    sums_.narrow(0, first, count).copy_(rounded.sum(1));
    const at::Tensor to = weights_.select(0, block);
    if (count < kBlock) to.zero_();
    to.narrow(3, 0, count)
        .copy_(rounded.view({count, channels_ / kFour, kFour, height_, width_}).permute({3, 4, 1, 0, 2}));
  }
  scales_ = at::zeros({filled}, at::kFloat);
  scales_.narrow(0, 0, out_channels_).copy_(scale);
  bias_ = at::zeros({filled}, at::kFloat);
  if (bias) bias_.narrow(0, 0, out_channels_).copy_(*bias);
}

at::Tensor QuantizedConv::run(const at::Tensor& x, const std::optional<at::Tensor>& residual,
                              bool relu) const {
  const at::Tensor input = x.contiguous(at::MemoryFormat::ChannelsLast);
  const int64_t height = x.size(2), width = x.size(3), images = x.size(0);
  const PaddedImages padded{images, height, width, channels_, shape_.padding, shape_.upsampled ? 2 : 1};
  QuantizedArguments a{};
  a.at = padded.geometry(height_, width_, shape_.stride, kFour);
  at::Tensor y = pooled_empty({images, out_channels_, a.at.height, a.at.width}, at::kFloat,
                              at::MemoryFormat::ChannelsLast);
  const at::Tensor added =
      residual ? residual->expand(y.sizes()).contiguous(at::MemoryFormat::ChannelsLast) : at::Tensor();
  const float* const residuals = residual ? added.const_data_ptr<float>() : nullptr;
  const auto* const source = input.const_data_ptr<float>();
  if (height_ == 1 && width_ == 1 && shape_.stride == 1 && shape_.padding == 0 && !shape_.upsampled) {
    products(source, images * height * width, residuals, relu, y.mutable_data_ptr<float>());
    return y;
  }

  const std::vector<Quantization> quantizations =
      quantizations_of(source, images, height * width * channels_);
  const auto of = [&](int64_t image) { return quantizations[static_cast<size_t>(image)]; };
  const at::Tensor bytes = pooled_empty(padded.sizes(), at::kByte);
  padded.fill(
      bytes.mutable_data_ptr<uint8_t>(),
      [&](int64_t image, int64_t row, uint8_t* space) {
        const float* const values = source + (image * height + row) * width * channels_;
        cpu_kernels()->quantized->quantize(values, width * channels_, of(image), space);
        return space;
      },
      [&](int64_t image) { return static_cast<uint8_t>(of(image).zero); });
  a.x = reinterpret_cast<const int32_t*>(bytes.const_data_ptr<uint8_t>());
  a.quantizations = quantizations.data();
  a.pixels_of_each = a.at.height * a.at.width;
  a.residual = residuals;
  a.y = y.mutable_data_ptr<float>();
  a.relu = relu;
  compute(a, images * a.pixels_of_each);
  return y;
}

at::Tensor QuantizedConv::multiply(const at::Tensor& x, const std::optional<at::Tensor>& residual) const {
  const at::Tensor input = x.contiguous();
  std::vector<int64_t> size = x.sizes().vec();
  size.back() = out_channels_;
  at::Tensor y = pooled_empty(size, at::kFloat);
  const at::Tensor added = residual ? residual->expand(size).contiguous() : at::Tensor();
  products(input.const_data_ptr<float>(), input.numel() / channels_,
           residual ? added.const_data_ptr<float>() : nullptr, false, y.mutable_data_ptr<float>());
  return y;
}

void QuantizedConv::products(const float* rows, int64_t count, const float* residual, bool relu,
                             float* y) const {
  constexpr int64_t kValuesOfAThread = 1 << 15;
  std::vector<Quantization> quantizations(static_cast<size_t>(count));
  const at::Tensor bytes = pooled_empty({count * channels_}, at::kByte);
  auto* const to = bytes.mutable_data_ptr<uint8_t>();
  parallel_for(count, std::max<int64_t>(1, kValuesOfAThread / channels_), [&](int64_t begin, int64_t end) {
    const auto& kernels = *cpu_kernels()->quantized;
    for (int64_t row = begin; row < end; ++row) {
      Range range{};
      kernels.extend(rows + row * channels_, channels_, range);
      const Quantization by = quantizations[static_cast<size_t>(row)] = quantization_of(range);
      kernels.quantize(rows + row * channels_, channels_, by, to + row * channels_);
    }
  });
  QuantizedArguments a{};
  a.at = PaddedImages{1, 1, std::max<int64_t>(1, count), channels_, 0, 1}.geometry(1, 1, 1, kFour);
  a.x = reinterpret_cast<const int32_t*>(bytes.const_data_ptr<uint8_t>());
  a.quantizations = quantizations.data();
  a.pixels_of_each = 1;
  a.residual = residual;
  a.y = y;
  a.relu = relu;
  compute(a, count);
}

void QuantizedConv::compute(kernels::QuantizedArguments& a, int64_t pixels) const {
  constexpr double kSpeed = 4;  // products per lane
  a.weights = reinterpret_cast<const int32_t*>(weights_.const_data_ptr<int8_t>());
  a.weight_sums = sums_.const_data_ptr<int32_t>();
  a.scales = scales_.const_data_ptr<float>();
  a.bias = bias_.const_data_ptr<float>();
  a.out_channels = out_channels_;
  const auto kernel = cpu_kernels()->quantized->convolution;
  in_blocks(out_channels_, pixels, height_ * width_ * channels_, kSpeed,
            [&](int64_t block, int64_t first, int64_t last) { kernel(a, block, first, last); });
}

}  // namespace diad
