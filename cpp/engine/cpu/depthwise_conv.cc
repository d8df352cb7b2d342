#include "cpu/depthwise_conv.h"

#include <ATen/ops/clamp.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>

#include "cpu/kernel_dispatch.h"
#include "support/mmap_pool.h"
#include "support/thread_pool.h"

namespace diad {

DepthwiseLayer::DepthwiseLayer(at::Tensor weight, std::optional<at::Tensor> bias, Shape shape)
    : weight_(std::move(weight)), bias_(std::move(bias)), shape_(shape) {
  if (weight_.scalar_type() != at::kFloat || cpu_kernels() == nullptr) return;
  packed_ = weight_.squeeze(1).permute({1, 2, 0}).contiguous();
  packed_bias_ = bias_ ? bias_->contiguous() : at::zeros({weight_.size(0)}, at::kFloat);
}

at::Tensor DepthwiseLayer::run(const at::Tensor& x) const {
  const int64_t channels = weight_.size(0), kernel = weight_.size(2), border = shape_.before + shape_.after;
  TORCH_CHECK(x.dim() == 4 && x.size(1) == channels, "Expected [N, ", channels,
              ", H, W] for a depthwise convolution but received ", x.sizes());
  TORCH_CHECK(x.scalar_type() == weight_.scalar_type(), "Expected ", weight_.scalar_type(),
              " for a depthwise convolution but received ", x.scalar_type());
  TORCH_CHECK(x.size(2) + border >= kernel && x.size(3) + border >= kernel,
              "Expected an image at least as large as the kernel of a depthwise convolution but received ",
              x.sizes());
  if (!packed_.defined()) return by_libtorch(x);

  const at::Tensor input = x.contiguous(at::MemoryFormat::ChannelsLast);
  const int64_t images = x.size(0), height = x.size(2), width = x.size(3);
  const int64_t out_height = (height + border - kernel) / shape_.stride + 1,
                out_width = (width + border - kernel) / shape_.stride + 1;
  at::Tensor y =
      pooled_empty({images, channels, out_height, out_width}, at::kFloat, at::MemoryFormat::ChannelsLast);
  kernels::DepthwiseArguments image{input.const_data_ptr<float>(),
                                    packed_.const_data_ptr<float>(),
                                    packed_bias_.const_data_ptr<float>(),
                                    y.mutable_data_ptr<float>(),
                                    height,
                                    width,
                                    channels,
                                    out_width,
                                    kernel,
                                    shape_.stride,
                                    shape_.before,
                                    shape_.low,
                                    shape_.high};
  const double work = 2.0 * static_cast<double>(out_width * channels * kernel * kernel);  // per row
  const auto grain = std::max<int64_t>(1, static_cast<int64_t>(kWorkOfAThread / work));
  parallel_for(images * out_height, grain, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t index = begin / out_height, row = begin % out_height,
                    rows = std::min(end - begin, out_height - row);
      kernels::DepthwiseArguments part = image;
      part.x += index * height * width * channels;
      part.y += index * out_height * out_width * channels;
      cpu_kernels()->depthwise(part, row, row + rows);
      begin += rows;
    }
  });
  return y;
}

at::Tensor DepthwiseLayer::by_libtorch(const at::Tensor& x) const {
  const int64_t before = shape_.before, after = shape_.after;
  const at::Tensor padded = at::constant_pad_nd(x, {before, after, before, after});
  const int64_t no_padding[] = {0, 0};
  const at::Tensor y = at::conv2d(padded, weight_, bias_, shape_.stride, no_padding, /*dilation=*/1,
                                  /*groups=*/weight_.size(0));
  const bool clamped = std::isfinite(shape_.low) || std::isfinite(shape_.high);
  return (clamped ? at::clamp(y, shape_.low, shape_.high) : y).contiguous(at::MemoryFormat::ChannelsLast);
}

}  // namespace diad
