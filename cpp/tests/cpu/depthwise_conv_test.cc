// Tests DepthwiseLayer against LibTorch's operators in double.
#include "cpu/depthwise_conv.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>

#include <string>

#include "cpu/kernel_dispatch.h"
#include "difference.h"
#include "random_tensor.h"
#include "support.h"

namespace {

using namespace diad;

at::Tensor plain_depthwise(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                           const DepthwiseLayer::Shape& shape) {
  const at::Tensor padded =
      at::constant_pad_nd(x.to(at::kDouble), {shape.before, shape.after, shape.before, shape.after});
  const int64_t no_padding[] = {0, 0};
  return at::conv2d(padded, weight.to(at::kDouble), bias.to(at::kDouble), shape.stride, no_padding, 1,
                    weight.size(0));
}

}  // namespace

TEST_CASE("the depthwise convolution equals LibTorch's for odd sizes, strides, paddings and channel counts") {
  const c10::InferenceMode guard;
  uint64_t seed = 0;
  for (const int64_t channels : {1, 7, 16, 33, 96}) {
    for (const int64_t kernel : {1, 3, 5}) {
      for (const int64_t stride : {1, 2}) {
        for (const int64_t side : {5, 8}) {
          const int64_t border = kernel - stride, before = border > 0 ? border / 2 : 0;
          const DepthwiseLayer::Shape shape{stride, before, border > 0 ? border - before : 0};
          const at::Tensor weight = random_tensor({channels, 1, kernel, kernel}, ++seed),
                           bias = random_tensor({channels}, ++seed);
          const at::Tensor x = random_tensor({2, channels, side, side + 1}, ++seed);
          const DepthwiseLayer layer(weight, bias, shape);
          const at::Tensor y = layer.run(x);
          CHECK(y.is_contiguous(at::MemoryFormat::ChannelsLast));
          CHECK(difference(y, plain_depthwise(x, weight, bias, shape)) < 1e-5);
        }
      }
    }
  }
}

TEST_CASE("the depthwise convolution clamps its result, works without a bias and reports its kernel") {
  const c10::InferenceMode guard;
  const at::Tensor weight = random_tensor({24, 1, 3, 3}, 1), x = random_tensor({1, 24, 6, 6}, 2) * 5;
  const DepthwiseLayer::Shape shape{1, 1, 1, 0.0F, 6.0F};
  const DepthwiseLayer layer(weight, std::nullopt, shape);
  const at::Tensor expected = at::clamp(plain_depthwise(x, weight, at::zeros({24}), shape), 0, 6);
  CHECK(difference(layer.run(x), expected) < 1e-5);
  CHECK(std::string(layer.kernel()) == (cpu_kernels() ? "depthwise" : "LibTorch"));
}

TEST_CASE("the depthwise convolution falls back to LibTorch in bfloat16") {
  const c10::InferenceMode guard;
  const at::Tensor weight = random_tensor({8, 1, 3, 3}, 1).to(at::kBFloat16),
                   x = random_tensor({1, 8, 6, 6}, 2).to(at::kBFloat16);
  const DepthwiseLayer layer(weight, std::nullopt, {2, 0, 1});
  CHECK(std::string(layer.kernel()) == "LibTorch");
  CHECK(layer.run(x).sizes() == c10::IntArrayRef{1, 8, 3, 3});
}

TEST_CASE("the depthwise convolution rejects other channel counts and images smaller than its kernel") {
  const c10::InferenceMode guard;
  const DepthwiseLayer layer(random_tensor({8, 1, 5, 5}, 1), std::nullopt, {1, 0, 0});
  CHECK_THROWS_AS(layer.run(random_tensor({1, 7, 8, 8}, 2)), c10::Error);
  CHECK_THROWS_AS(layer.run(random_tensor({1, 8, 4, 8}, 3)), c10::Error);
}
