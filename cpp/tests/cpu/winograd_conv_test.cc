// Tests WinogradConv against LibTorch's operators in double.
#include "cpu/winograd_conv.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/upsample_nearest2d.h>
#include <c10/core/InferenceMode.h>

#include <limits>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu/packed_layers.h"
#include "random_tensor.h"
#include "support.h"
#include "support/thread_pool.h"

namespace {

using namespace diad;

// Relative difference of the norms: the rounding error of a float32 sum does not depend on the size of its
// result.
double relative_difference(const at::Tensor& a, const at::Tensor& b) {
  REQUIRE(a.sizes() == b.sizes());
  const at::Tensor expected = b.to(at::kDouble);
  return ((a.to(at::kDouble) - expected).norm() / expected.norm()).item<double>();
}

at::Tensor plain(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  return at::conv2d(x.to(at::kDouble), weight.to(at::kDouble), bias.to(at::kDouble), 1, 1);
}

// 2 x 2 tiles round like a direct sum; 4 x 4 tiles multiply by up to 8 and divide by up to 24 in between.
double tolerance(int64_t tile) { return tile == 2 ? 1e-6 : 6e-6; }

}  // namespace

TEST_CASE("Winograd's convolution equals LibTorch's for sizes that are not multiples of the tile") {
  const c10::InferenceMode guard;
  uint64_t seed = 0;
  for (const int64_t tile : {2, 4}) {
    for (const auto& [channels, outputs] :
         std::vector<std::pair<int64_t, int64_t>>{{16, 32}, {48, 16}, {32, 80}}) {
      const at::Tensor weight = random_tensor({outputs, channels, 3, 3}, ++seed),
                       bias = random_tensor({outputs}, ++seed);
      SKIP_UNLESS(WinogradConv::available(weight), "needs AVX2");
      for (const auto& [images, height, width] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{
               {1, 1, 1}, {1, 2, 3}, {3, 5, 4}, {2, 17, 19}, {1, 64, 70}}) {
        const at::Tensor x = random_tensor({images, channels, height, width}, ++seed),
                         expected = plain(x, weight, bias);
        const at::Tensor residual = random_tensor(expected.sizes().vec(), ++seed),
                         each = random_tensor({1, outputs, 1, 1}, ++seed);
        const WinogradConv layer(weight, bias, {tile, false});
        const at::Tensor y = layer.run(x, std::nullopt);
        CHECK(y.equal(WinogradConv(weight, bias, {tile, false, false}).run(x, std::nullopt)));
        CHECK(y.is_contiguous(at::MemoryFormat::ChannelsLast));
        CHECK(relative_difference(y, expected) < tolerance(tile));
        CHECK(relative_difference(layer.run(x.contiguous(at::MemoryFormat::ChannelsLast), residual),
                                  expected + residual) < tolerance(tile));
        CHECK(relative_difference(layer.run(x, each, true), (expected + each).relu()) < tolerance(tile));
      }
      const at::Tensor x = random_tensor({2, channels, 5, 6}, ++seed),
                       enlarged = at::upsample_nearest2d(x, {10, 12});
      CHECK(relative_difference(WinogradConv(weight, bias, {tile, true}).run(x, std::nullopt),
                                plain(enlarged, weight, bias)) < tolerance(tile));
      CHECK(WinogradConv(weight, std::nullopt, {tile})
                .run(random_tensor({0, channels, 4, 4}, 1), std::nullopt)
                .numel() == 0);
    }
  }
}

TEST_CASE("Winograd's convolution confines NaN to its neighborhood") {
  const c10::InferenceMode guard;
  const at::Tensor weight = random_tensor({16, 16, 3, 3}, 1), bias = random_tensor({16}, 2);
  SKIP_UNLESS(WinogradConv::available(weight), "needs AVX2");
  at::Tensor x = random_tensor({1, 16, 32, 32}, 3);
  x[0][3][9][9] = std::numeric_limits<float>::quiet_NaN();
  const at::Tensor y = WinogradConv(weight, bias, {4, false}).run(x, std::nullopt, true);
  CHECK(y.select(2, 9).select(2, 9).isnan().all().item<bool>());
  CHECK(at::isfinite(y.slice(2, 16)).all().item<bool>());
}

TEST_CASE("a layer is right for every kernel that its size and channels select") {
  const c10::InferenceMode guard;
  for (const int64_t side : {8, 15, 16, 40}) {
    for (const int64_t channels : {32, 64, 96, 104, 208}) {
      for (const int64_t runs : {1, 10}) {
        const at::Tensor weight = random_tensor({channels, channels, 3, 3}, 1),
                         bias = random_tensor({channels}, 2);
        const at::Tensor x = random_tensor({2, channels, side, side}, 3);
        for (const bool upsampled : {false, true}) {
          ConvLayer layer(weight, bias, {{1, 1}, {1, 1}, {1, 1}, upsampled, false, runs});
          const at::Tensor seen = upsampled ? at::upsample_nearest2d(x, {2 * side, 2 * side}) : x;
          CHECK(relative_difference(layer.run(x, std::nullopt), plain(seen, weight, bias)) < tolerance(4));
        }
      }
    }
  }
}

TEST_CASE("the number of threads does not change Winograd's convolution") {
  const c10::InferenceMode guard;
  const at::Tensor weight = random_tensor({96, 64, 3, 3}, 1), x = random_tensor({1, 64, 80, 80}, 2);
  SKIP_UNLESS(WinogradConv::available(weight), "needs AVX2");
  const WinogradConv layer(weight, std::nullopt, {4});
  const at::Tensor alone = layer.run(x, std::nullopt);
  ThreadPool pool(2);
  const ThreadPoolScope sharing(pool);
  CHECK(alone.equal(layer.run(x, std::nullopt)));
}
