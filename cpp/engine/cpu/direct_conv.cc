#include "cpu/direct_conv.h"

#include <ATen/EmptyTensor.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/conv_tiling.h"
#include "cpu/kernel_dispatch.h"
#include "support/mmap_pool.h"

namespace diad {

namespace {

using kernels::ConvArguments;
using kernels::kBlock;

// Compares in pieces: avoids a copy of large weights, and usually the first piece finds an inexact value.
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
    : shape_(shape),
      out_channels_(weight.size(0)),
      channels_(weight.size(1)),
      height_(weight.size(2)),
      width_(weight.size(3)) {
  const int64_t filled = blocks_of(out_channels_) * kBlock;
  // [K, C, h, w] -> [K / 32, 32, C, h, w] -> [K / 32, h, w, C, 32]
  at::Tensor kept = exact_in_half(weight) ? weight.to(at::kHalf) : weight;
  if (filled > out_channels_) kept = at::constant_pad_nd(kept, {0, 0, 0, 0, 0, 0, 0, filled - out_channels_});
  const at::Tensor blocks =
      kept.contiguous().view({filled / kBlock, kBlock, channels_, height_, width_}).permute({0, 3, 4, 2, 1});
  weights_ =
      at::detail::empty_generic(blocks.sizes(), mapped_allocator(),
                                c10::DispatchKeySet(c10::DispatchKey::CPU), kept.scalar_type(), std::nullopt);
  weights_.copy_(blocks);
  bias_ = at::zeros({filled}, at::kFloat);
  if (bias) bias_.narrow(0, 0, out_channels_).copy_(*bias);
}

at::Tensor DirectConv::run(const at::Tensor& x, const std::optional<at::Tensor>& residual, bool relu,
                           float upper) const {
  const at::Tensor input = x.contiguous(at::MemoryFormat::ChannelsLast);
  const int64_t height = x.size(2), width = x.size(3);
  const PaddedImages images{x.size(0), height, width, channels_, shape_.padding, shape_.upsampled ? 2 : 1};
  ConvArguments a{};
  a.at = images.geometry(height_, width_, shape_.stride, 1);
  at::Tensor y = pooled_empty({x.size(0), out_channels_, a.at.height, a.at.width}, at::kFloat,
                              at::MemoryFormat::ChannelsLast);
  const at::Tensor added =
      residual ? residual->expand(y.sizes()).contiguous(at::MemoryFormat::ChannelsLast) : at::Tensor();

  const auto* const source = input.const_data_ptr<float>();
  a.x = source;
  at::Tensor padded;
  if (shape_.padding > 0 || shape_.upsampled) {
    padded = pooled_empty(images.sizes(), at::kFloat);
    images.fill(
        padded.mutable_data_ptr<float>(),
        [&](int64_t image, int64_t row, float*) {
          return source + (image * height + row) * width * channels_;
        },
        [](int64_t) { return 0.0F; });
    a.x = padded.const_data_ptr<float>();
  }
  a.residual = residual ? added.const_data_ptr<float>() : nullptr;
  a.y = y.mutable_data_ptr<float>();
  a.relu = relu;
  a.upper = upper;
  compute(a, x.size(0) * a.at.height * a.at.width);
  return y;
}

at::Tensor DirectConv::multiply(const at::Tensor& x, const std::optional<at::Tensor>& residual) const {
  const at::Tensor input = x.contiguous();
  const int64_t rows = input.numel() / channels_;
  std::vector<int64_t> size = x.sizes().vec();
  size.back() = out_channels_;
  at::Tensor y = pooled_empty(size, at::kFloat);
  const at::Tensor added = residual ? residual->expand(size).contiguous() : at::Tensor();
  ConvArguments a{};
  a.at = PaddedImages{1, 1, std::max<int64_t>(1, rows), channels_, 0, 1}.geometry(1, 1, 1, 1);
  a.x = input.const_data_ptr<float>();
  a.residual = residual ? added.const_data_ptr<float>() : nullptr;
  a.y = y.mutable_data_ptr<float>();
  compute(a, rows);
  return y;
}

void DirectConv::compute(ConvArguments& a, int64_t pixels) const {
  a.weights = weights_.const_data_ptr();
  a.half = half();
  a.bias = bias_.const_data_ptr<float>();
  a.out_channels = a.y_stride = out_channels_;
  const kernels::ConvKernel kernel = cpu_kernels()->convolution;
  in_blocks(out_channels_, pixels, a.at.runs * a.at.run_length, 1,
            [&](int64_t block, int64_t first, int64_t last) { kernel(a, block, first, last); });
}

}  // namespace diad
