#include "direct_conv.h"

#include <ATen/EmptyTensor.h>
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu_kernels.h"
#include "mapped_allocator.h"

namespace diad {

namespace {

using kernels::ConvArguments;
using kernels::kBlock;

int64_t rounded_up(int64_t value) { return (value + kBlock - 1) / kBlock * kBlock; }

// Output pixels of a task: as many as share one pass over the weights.
constexpr int64_t kChunk = kernels::kMostPixels;

void compute(const ConvArguments& a, int64_t pixels) {
  const int64_t blocks = rounded_up(a.out_channels) / kBlock, chunks = (pixels + kChunk - 1) / kChunk;
  const double work = 2.0 * static_cast<double>(kBlock * std::min(kChunk, pixels)) * static_cast<double>(a.runs * a.run_length);
  const auto grain = std::max<int64_t>(1, static_cast<int64_t>(kWorkOfAThread / work));
  const kernels::ConvKernel kernel = cpu_kernels()->convolution;
  at::parallel_for(0, blocks * chunks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / chunks, first = task % chunks * kChunk;
      kernel(a, block, first, std::min(first + kChunk, pixels));
    }
  });
}

// A channels-last picture with a border of zeros, each pixel `times` times in both directions.
void pad(const float* x, int64_t pictures, int64_t height, int64_t width, int64_t channels, int64_t border, int64_t times, float* padded) {
  const int64_t rows = height * times + 2 * border, columns = width * times + 2 * border;
  const auto bytes = static_cast<size_t>(channels) * sizeof(float);
  for (int64_t picture = 0; picture < pictures; ++picture) {
    for (int64_t row = 0; row < rows; ++row) {
      float* to = padded + (picture * rows + row) * columns * channels;
      const int64_t inner = row - border;
      if (inner < 0 || inner >= height * times) {
        std::memset(to, 0, bytes * static_cast<size_t>(columns));
        continue;
      }
      const float* from = x + (picture * height + inner / times) * width * channels;
      std::memset(to, 0, bytes * static_cast<size_t>(border));
      to += border * channels;
      if (times == 1) {
        std::memcpy(to, from, bytes * static_cast<size_t>(width));
      } else {
        for (int64_t column = 0; column < width * times; ++column) {
          std::memcpy(to + column * channels, from + column / times * channels, bytes);
        }
      }
      std::memset(to + width * times * channels, 0, bytes * static_cast<size_t>(border));
    }
  }
}

// Piece by piece: large weights are not copied, and most that are not exact are found out by the first piece.
bool exact_in_half(const at::Tensor& weight) {
  constexpr int64_t kPiece = 1 << 16;
  for (const at::Tensor& piece : weight.contiguous().view({-1}).split(kPiece)) {
    if (!piece.to(at::kHalf).to(at::kFloat).equal(piece)) return false;
  }
  return true;
}

}  // namespace

bool DirectConv::available() { return cpu_kernels() != nullptr; }

DirectConv::DirectConv(const at::Tensor& weight, const std::optional<at::Tensor>& bias, Shape shape)
    : shape_(shape), out_channels_(weight.size(0)), channels_(weight.size(1)), height_(weight.size(2)), width_(weight.size(3)) {
  const int64_t filled = rounded_up(out_channels_);
  // [K, C, h, w] -> [K / 32, 32, C, h, w] -> [K / 32, h, w, C, 32]
  at::Tensor kept = exact_in_half(weight) ? weight.to(at::kHalf) : weight;
  if (filled > out_channels_) kept = at::constant_pad_nd(kept, {0, 0, 0, 0, 0, 0, 0, filled - out_channels_});
  const at::Tensor blocks = kept.contiguous().view({filled / kBlock, kBlock, channels_, height_, width_}).permute({0, 3, 4, 2, 1});
  weights_ = at::detail::empty_generic(blocks.sizes(), mapped_allocator(), c10::DispatchKeySet(c10::DispatchKey::CPU), kept.scalar_type(),
                                       std::nullopt);
  weights_.copy_(blocks);
  bias_ = at::zeros({filled}, at::kFloat);
  if (bias) bias_.narrow(0, 0, out_channels_).copy_(*bias);
}

at::Tensor DirectConv::run(const at::Tensor& x, const std::optional<at::Tensor>& residual) const {
  const at::Tensor input = x.contiguous(at::MemoryFormat::ChannelsLast);
  const int64_t pictures = x.size(0), times = shape_.upsampled ? 2 : 1, border = shape_.padding;
  const int64_t rows = x.size(2) * times + 2 * border, columns = x.size(3) * times + 2 * border;
  const int64_t out_height = (rows - height_) / shape_.stride + 1, out_width = (columns - width_) / shape_.stride + 1;
  const auto options = input.options().memory_format(at::MemoryFormat::ChannelsLast);
  at::Tensor y = at::empty({pictures, out_channels_, out_height, out_width}, options);
  const at::Tensor added = residual ? residual->expand(y.sizes()).contiguous(at::MemoryFormat::ChannelsLast) : at::Tensor();

  const float* source = input.const_data_ptr<float>();
  at::Tensor padded;
  if (border > 0 || times > 1) {
    padded = at::empty({pictures * rows * columns * channels_}, at::kFloat);
    pad(source, pictures, x.size(2), x.size(3), channels_, border, times, padded.mutable_data_ptr<float>());
    source = padded.const_data_ptr<float>();
  }
  ConvArguments a{};
  a.x = source;
  a.runs = height_;
  a.run_length = width_ * channels_;
  a.run_stride = columns * channels_;
  a.picture_stride = rows * columns * channels_;
  a.row_step = shape_.stride * columns * channels_;
  a.pixel_step = shape_.stride * channels_;
  a.height = out_height;
  a.width = out_width;
  a.weights = weights_.const_data_ptr();
  a.half = half();
  a.bias = bias_.const_data_ptr<float>();
  a.residual = residual ? added.const_data_ptr<float>() : nullptr;
  a.y = y.mutable_data_ptr<float>();
  a.out_channels = out_channels_;
  a.relu = shape_.relu;
  compute(a, pictures * out_height * out_width);
  return y;
}

at::Tensor DirectConv::multiply(const at::Tensor& x, const std::optional<at::Tensor>& residual) const {
  const at::Tensor input = x.contiguous();
  const int64_t rows = input.numel() / channels_;
  std::vector<int64_t> size = x.sizes().vec();
  size.back() = out_channels_;
  at::Tensor y = at::empty(size, input.options());
  const at::Tensor added = residual ? residual->expand(size).contiguous() : at::Tensor();
  ConvArguments a{};
  a.x = input.const_data_ptr<float>();
  a.runs = 1;
  a.run_length = channels_;
  a.height = 1;
  a.width = std::max<int64_t>(1, rows);
  a.pixel_step = channels_;
  a.weights = weights_.const_data_ptr();
  a.half = half();
  a.bias = bias_.const_data_ptr<float>();
  a.residual = residual ? added.const_data_ptr<float>() : nullptr;
  a.y = y.mutable_data_ptr<float>();
  a.out_channels = out_channels_;
  a.relu = shape_.relu;
  compute(a, rows);
  return y;
}

}  // namespace diad
