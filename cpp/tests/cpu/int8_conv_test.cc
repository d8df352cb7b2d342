// Tests QuantizedConv against the same quantization with LibTorch's operators in double.
#include "cpu/int8_conv.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/amax.h>
#include <ATen/ops/amin.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/logspace.h>
#include <ATen/ops/round.h>
#include <ATen/ops/upsample_nearest2d.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>

#include <cmath>
#include <limits>
#include <utility>

#include "difference.h"
#include "random_tensor.h"
#include "support.h"
#include "support/thread_pool.h"

namespace {

using namespace diad;

at::Tensor rounded_weight(const at::Tensor& weight) {
  const at::Tensor scale = at::amax(weight.abs(), {1, 2, 3}, true) / 127.F;
  return (at::round(weight / scale).to(at::kDouble) * scale.to(at::kDouble));
}

// Quantizes to 256 steps from minimum to maximum over `dimensions`, including 0.
at::Tensor rounded_input(const at::Tensor& x, at::IntArrayRef dimensions) {
  const at::Tensor least = at::amin(x, dimensions, true).clamp_max(0),
                   greatest = at::amax(x, dimensions, true).clamp_min(0);
  const at::Tensor scale = ((greatest - least) / 255.F).clamp_min(1e-30), zero = at::round(-least / scale);
  const at::Tensor bytes = (at::round(x * (1 / scale)) + zero).clamp(0, 255);
  return (bytes - zero).to(at::kDouble) * scale.to(at::kDouble);
}

}  // namespace

TEST_CASE(
    "the quantized convolution equals a convolution of quantized inputs and weights for odd sizes and "
    "strides") {
  SKIP_UNLESS(QuantizedConv::available(), "needs AVX-512 VNNI");
  const c10::InferenceMode guard;
  uint64_t seed = 0;
  for (const int64_t channels : {16, 20, 132}) {
    for (const int64_t outputs : {16, 31, 32, 70}) {
      for (const int64_t kernel : {1, 3}) {
        for (const int64_t stride : {1, 2}) {
          for (const int64_t side : {1, 3, 17}) {
            const int64_t padding = kernel / 2;
            const at::Tensor weight = random_tensor({outputs, channels, kernel, kernel}, ++seed) * 0.2,
                             bias = random_tensor({outputs}, ++seed);
            at::Tensor x = random_tensor({2, channels, side, side + 1}, ++seed);
            x[1] *= 10;  // needs its own scale
            const bool row_by_row = kernel == 1 && stride == 1;
            const at::Tensor rounded = row_by_row ? rounded_input(x, {1}) : rounded_input(x, {1, 2, 3});
            const at::Tensor expected =
                at::conv2d(rounded, rounded_weight(weight), bias.to(at::kDouble), stride, padding);
            const at::Tensor residual = random_tensor(expected.sizes().vec(), ++seed),
                             each = random_tensor({1, outputs, 1, 1}, ++seed);
            const QuantizedConv layer(weight, bias, {stride, padding, false});
            const at::Tensor y = layer.run(x, std::nullopt);
            CHECK(y.is_contiguous(at::MemoryFormat::ChannelsLast));
            CHECK(difference(y, expected) < 3e-5);
            CHECK(difference(layer.run(x.contiguous(at::MemoryFormat::ChannelsLast), residual),
                             expected + residual) < 3e-5);
            CHECK(difference(layer.run(x, each, true), (expected + each).relu()) < 3e-5);
          }
        }
      }
    }
  }
}

TEST_CASE("the quantized convolution upsamples its input and is close to the exact result") {
  SKIP_UNLESS(QuantizedConv::available(), "needs AVX-512 VNNI");
  const c10::InferenceMode guard;
  const at::Tensor x = random_tensor({2, 64, 5, 6}, 1), weight = random_tensor({40, 64, 3, 3}, 2),
                   bias = random_tensor({40}, 3);
  const auto enlarged = [](const at::Tensor& y) { return at::upsample_nearest2d(y, {10, 12}); };
  const at::Tensor expected =
      at::conv2d(enlarged(rounded_input(x, {1, 2, 3})), rounded_weight(weight), bias.to(at::kDouble), 1, 1);
  const at::Tensor y = QuantizedConv(weight, bias, {1, 1, true}).run(x, std::nullopt);
  CHECK(difference(y, expected) < 1e-4);
  const at::Tensor exact = at::conv2d(enlarged(x), weight, bias, 1, 1);
  CHECK((y - exact).norm().item<double>() < 0.02 * exact.norm().item<double>());
}

TEST_CASE("the quantized product uses one scale per row") {
  SKIP_UNLESS(QuantizedConv::available(), "needs AVX-512 VNNI");
  const c10::InferenceMode guard;
  const at::Tensor matrix = random_tensor({70, 36}, 1), bias = random_tensor({70}, 2),
                   kernel = matrix.view({70, 36, 1, 1});
  const QuantizedConv layer(kernel, bias, {});
  const at::Tensor exact_matrix = rounded_weight(kernel).view({70, 36});
  for (const int64_t rows : {0, 1, 2, 7, 8, 9, 300}) {
    const at::Tensor sizes =
        at::logspace(-2, 1, std::max<int64_t>(rows, 1)).narrow(0, 0, rows).view({1, rows, 1});
    const at::Tensor x = random_tensor({2, rows, 36}, 3) * sizes, residual = random_tensor({2, rows, 70}, 4);
    CHECK(layer.multiply(x, std::nullopt).size(1) == rows);
    if (rows == 0) continue;
    const at::Tensor expected = at::linear(rounded_input(x, {2}), exact_matrix, bias.to(at::kDouble));
    CHECK(difference(layer.multiply(x, std::nullopt), expected) < 1e-4);
    CHECK(difference(layer.multiply(x, residual), expected + residual) < 1e-4);
  }
}

TEST_CASE("a minimum that rounds below the first step stays within one step") {
  SKIP_UNLESS(QuantizedConv::available(), "needs AVX-512 VNNI");
  const c10::InferenceMode guard;
  const QuantizedConv identity(at::eye(16).view({16, 16, 1, 1}), std::nullopt, {});
  // For these values -least / scale, the quotient of the zero point, is below a half and least * (1 / scale)
  // is beyond it.
  for (const auto& [least, greatest] : {std::pair{-0x1.4ffa7cp-1F, 0x1.4d0804p+0F},
                                        {-0x1.540ceep+1F, 0x1.2769f6p-1F},
                                        {-0x1.d7ca48p-1F, 0x1.d2108ap+1F}}) {
    const float scale = (greatest - least) / 255.F;
    REQUIRE(std::nearbyint(least * (1 / scale)) + static_cast<float>(std::lround(-least / scale)) == -1);
    at::Tensor x = at::zeros({1, 16});
    x[0][0] = least;
    x[0][1] = greatest;
    CHECK(difference(identity.multiply(x, std::nullopt), x) < scale);
  }
}

TEST_CASE("non-finite values make only their own image's output of the quantized convolution NaN") {
  SKIP_UNLESS(QuantizedConv::available(), "needs AVX-512 VNNI");
  const c10::InferenceMode guard;
  const at::Tensor weight = random_tensor({32, 16, 3, 3}, 1);
  const QuantizedConv layer(weight, std::nullopt, {1, 1, false});
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    at::Tensor x = random_tensor({2, 16, 4, 4}, 2);
    x[0][3][2][1] = bad;
    const at::Tensor y = layer.run(x, std::nullopt, true);
    CHECK(y[0].isnan().all().item<bool>());
    CHECK(y[1].isfinite().all().item<bool>());
  }
  CHECK(layer.run(at::zeros({1, 16, 4, 4}), std::nullopt).eq(0).all().item<bool>());
}

TEST_CASE("the quantized convolution supports only some weights") {
  SKIP_UNLESS(QuantizedConv::available(), "needs AVX-512 VNNI");
  CHECK(QuantizedConv::takes(at::zeros({16, 16, 3, 3})));
  CHECK_FALSE(QuantizedConv::takes(at::zeros({16, 18, 3, 3})));
  CHECK_FALSE(QuantizedConv::takes(at::zeros({16, 4, 3, 3})));
  CHECK_FALSE(QuantizedConv::takes(at::zeros({4, 16, 3, 3})));
  CHECK_FALSE(QuantizedConv::takes(at::zeros({16, 65540, 1, 1})));
  CHECK_FALSE(QuantizedConv::takes(at::zeros({16, 16, 3, 3}, at::kBFloat16)));
}

TEST_CASE("the number of threads does not change the quantized convolution") {
  SKIP_UNLESS(QuantizedConv::available(), "needs AVX-512 VNNI");
  const c10::InferenceMode guard;
  const at::Tensor weight = random_tensor({192, 192, 3, 3}, 1), x = random_tensor({2, 192, 20, 20}, 2);
  const QuantizedConv layer(weight, std::nullopt, {1, 1});
  const at::Tensor alone = layer.run(x, std::nullopt);
  ThreadPool pool(2);
  const ThreadPoolScope sharing(pool);
  CHECK(alone.equal(layer.run(x, std::nullopt)));
}
