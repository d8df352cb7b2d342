// Tests DirectConv against LibTorch's operators in double.
#include "cpu/direct_conv.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/upsample_nearest2d.h>
#include <c10/core/InferenceMode.h>

#include "difference.h"
#include "random_tensor.h"
#include "support.h"
#include "support/thread_pool.h"

namespace {

using namespace diad;

}  // namespace

TEST_CASE("the direct convolution equals LibTorch's for odd sizes, strides, paddings and channel counts") {
  SKIP_UNLESS(DirectConv::available(), "needs AVX2");
  const c10::InferenceMode guard;
  uint64_t seed = 0;
  for (const int64_t channels : {1, 3, 48}) {
    for (const int64_t outputs : {1, 31, 32, 70}) {
      for (const int64_t kernel : {1, 3, 4}) {
        for (const int64_t stride : {1, 2}) {
          for (const int64_t side : {1, 2, 5, 16}) {
            const int64_t padding = kernel / 2;
            const at::Tensor weight = random_tensor({outputs, channels, kernel, kernel}, ++seed) * 0.2,
                             bias = random_tensor({outputs}, ++seed);
            const at::Tensor x = random_tensor({seed % 2 == 0 ? 1 : 3, channels, side, side + 1}, ++seed);
            const at::Tensor plain =
                at::conv2d(x.to(at::kDouble), weight.to(at::kDouble), bias.to(at::kDouble), stride, padding);
            const at::Tensor residual = random_tensor(plain.sizes().vec(), ++seed),
                             each = random_tensor({1, outputs, 1, 1}, ++seed);
            const DirectConv layer(weight, bias, {stride, padding, false});
            const at::Tensor y = layer.run(x, std::nullopt);
            CHECK(y.is_contiguous(at::MemoryFormat::ChannelsLast));
            CHECK(difference(y, plain) < 3e-5);
            CHECK(difference(layer.run(x.contiguous(at::MemoryFormat::ChannelsLast), residual),
                             plain + residual) < 3e-5);
            CHECK(difference(layer.run(x, each, true), (plain + each).relu()) < 3e-5);
          }
        }
      }
    }
  }
}

TEST_CASE("the direct convolution upsamples its input") {
  SKIP_UNLESS(DirectConv::available(), "needs AVX2");
  const c10::InferenceMode guard;
  const at::Tensor x = random_tensor({2, 24, 4, 5}, 1), weight = random_tensor({40, 24, 3, 3}, 2),
                   bias = random_tensor({40}, 3);
  const at::Tensor expected = at::conv2d(at::upsample_nearest2d(x.to(at::kDouble), {8, 10}),
                                         weight.to(at::kDouble), bias.to(at::kDouble), 1, 1);
  CHECK(difference(DirectConv(weight, bias, {1, 1, true}).run(x, std::nullopt), expected) < 5e-5);
}

TEST_CASE("the direct product equals LibTorch's for any number of rows") {
  SKIP_UNLESS(DirectConv::available(), "needs AVX2");
  const c10::InferenceMode guard;
  const at::Tensor matrix = random_tensor({70, 33}, 1), bias = random_tensor({70}, 2);
  const DirectConv layer(matrix.view({70, 33, 1, 1}), bias, {});
  for (const int64_t rows : {0, 1, 2, 7, 8, 9, 300}) {
    const at::Tensor x = random_tensor({2, rows, 33}, 3), residual = random_tensor({2, rows, 70}, 4);
    const at::Tensor expected = at::linear(x.to(at::kDouble), matrix.to(at::kDouble), bias.to(at::kDouble));
    CHECK(layer.multiply(x, std::nullopt).sizes() == expected.sizes());
    if (rows == 0) continue;
    CHECK(difference(layer.multiply(x, std::nullopt), expected) < 3e-5);
    CHECK(difference(layer.multiply(x, residual), expected + residual) < 3e-5);
  }
}

TEST_CASE("weights are stored in half precision only if that is exact") {
  SKIP_UNLESS(DirectConv::available(), "needs AVX2");
  const c10::InferenceMode guard;
  const at::Tensor weight = random_tensor({40, 20, 3, 3}, 1), x = random_tensor({1, 20, 4, 4}, 2);
  const at::Tensor rounded = weight.to(at::kHalf).to(at::kFloat);
  const DirectConv exact(weight, std::nullopt, {1, 1}), half(rounded, std::nullopt, {1, 1});
  CHECK_FALSE(exact.half());
  CHECK(half.half());
  at::Tensor one_off = rounded.clone();
  one_off.view({-1})[7] += 1e-5;
  const DirectConv nearly(one_off, std::nullopt, {1, 1});
  CHECK_FALSE(nearly.half());
  CHECK(difference(half.run(x, std::nullopt),
                   at::conv2d(x.to(at::kDouble), rounded.to(at::kDouble), {}, 1, 1)) < 3e-5);
  const at::Tensor tiny = at::full({32, 1, 1, 1}, 6e-8F).to(at::kHalf).to(at::kFloat);  // subnormal half
  CHECK(difference(DirectConv(tiny, std::nullopt, {}).run(at::ones({1, 1, 1, 1}), std::nullopt),
                   tiny.view({1, 32, 1, 1})) == 0);
}

TEST_CASE("the number of threads does not change the direct convolution") {
  SKIP_UNLESS(DirectConv::available(), "needs AVX2");
  const c10::InferenceMode guard;
  const at::Tensor weight = random_tensor({192, 192, 3, 3}, 1), x = random_tensor({2, 192, 8, 8}, 2);
  const DirectConv layer(weight, std::nullopt, {1, 1});
  const at::Tensor alone = layer.run(x, std::nullopt);
  ThreadPool pool(2);
  const ThreadPoolScope sharing(pool);
  CHECK(alone.equal(layer.run(x, std::nullopt)));
}
