// Tests the packed CPU layers and the norm against LibTorch's operators, in double where exactness matters.
#include "cpu/packed_layers.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/conv_transpose2d.h>
#include <ATen/ops/group_norm.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/upsample_nearest2d.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>

#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "address_limit.h"
#include "cpu/direct_conv.h"
#include "cpu/group_norm.h"
#include "difference.h"
#include "random_tensor.h"
#include "support.h"

namespace {

using namespace diad;

at::Tensor plain_norm(const at::Tensor& x, const std::optional<at::Tensor>& shift, const at::Tensor& weight,
                      const at::Tensor& bias, const GroupNormShape& shape) {
  const at::Tensor shifted = shift ? x.to(at::kDouble) + shift->to(at::kDouble) : x.to(at::kDouble);
  const at::Tensor y =
      at::group_norm(shifted, shape.groups, weight.to(at::kDouble), bias.to(at::kDouble), shape.eps);
  return shape.silu ? at::silu(y) : y;
}

}  // namespace

TEST_CASE("GroupNorm with shift and SiLU equals the separate operators") {
  const c10::InferenceMode guard;
  const at::Tensor weight = random_tensor({48}, 1), bias = random_tensor({48}, 2);
  for (const auto& [images, side] : std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {1, 16}, {3, 13}}) {
    // Single-pass variances fail for a large mean with a small spread.
    const at::Tensor x = random_tensor({images, 48, side, side}, 3) + 100 * random_tensor({1, 48, 1, 1}, 4);
    for (const bool silu : {false, true}) {
      for (const int64_t groups : {1, 8, 48}) {
        if (side == 1 && groups == 48) continue;  // a group of one value has no variance
        const GroupNormShape shape{groups, 1e-5, silu};
        for (const std::optional<at::Tensor>& shift :
             {std::optional<at::Tensor>(), std::optional(random_tensor({1, 48, 1, 1}, 5)),
              std::optional(random_tensor({images, 48, 1, 1}, 6))}) {
          const at::Tensor y = group_norm(x, shift, weight, bias, shape);
          CHECK(y.is_contiguous(at::MemoryFormat::ChannelsLast));
          CHECK(difference(y, plain_norm(x, shift, weight, bias, shape)) < 1e-3);
          const at::Tensor centered = random_tensor({images, 48, side, side}, 7);
          CHECK(difference(group_norm(centered, shift, weight, bias, shape),
                           plain_norm(centered, shift, weight, bias, shape)) < 5e-6);
        }
      }
    }
  }
}

TEST_CASE("GroupNorm is accurate if the first pixel is an outlier") {
  const c10::InferenceMode guard;
  const at::Tensor weight = random_tensor({48}, 1), bias = random_tensor({48}, 2),
                   x = random_tensor({1, 48, 96, 96}, 3);
  x.select(2, 0).select(2, 0).fill_(300);
  const GroupNormShape shape{8, 1e-5, false};
  CHECK(difference(group_norm(x, std::nullopt, weight, bias, shape),
                   plain_norm(x, std::nullopt, weight, bias, shape)) < 1e-4);
}

TEST_CASE("GroupNorm in bfloat16 equals float32 rounded to nearest") {
  const c10::InferenceMode guard;
  const at::Tensor weight = random_tensor({48}, 1).to(at::kBFloat16),
                   bias = random_tensor({48}, 2).to(at::kBFloat16);
  const at::Tensor shift = random_tensor({1, 48, 1, 1}, 3).to(at::kBFloat16);
  const at::Tensor x =
      (random_tensor({2, 48, 13, 13}, 4) + 10 * random_tensor({1, 48, 1, 1}, 5)).to(at::kBFloat16);
  for (const bool silu : {false, true}) {
    const GroupNormShape shape{8, 1e-5, silu};
    const at::Tensor y = group_norm(x, shift, weight, bias, shape);
    CHECK((y.scalar_type() == at::kBFloat16));
    CHECK(y.is_contiguous(at::MemoryFormat::ChannelsLast));
    const at::Tensor expected =
        group_norm(x.to(at::kFloat), shift.to(at::kFloat), weight.to(at::kFloat), bias.to(at::kFloat), shape);
    CHECK(y.equal(expected.to(at::kBFloat16)));
  }
  // x is -1 and 1 in one group: y = bias +- weight lies halfway between two bfloat16 numbers and must round
  // to even.
  const at::Tensor ends = at::tensor({-1.F, 1.F}).view({1, 1, 1, 2}).to(at::kBFloat16),
                   step = at::tensor({1 / 256.F}).to(at::kBFloat16);
  for (const auto& [middle, below, above] :
       std::vector<std::array<float, 3>>{{1.F, 1 - 1 / 256.F, 1.F}, {1 + 1 / 128.F, 1.F, 1 + 1 / 64.F}}) {
    const at::Tensor y =
        group_norm(ends, std::nullopt, step, at::tensor({middle}).to(at::kBFloat16), {1, 0.0, false})
            .to(at::kFloat);
    CHECK(y.flatten().equal(at::tensor({below, above})));
  }
  at::Tensor broken = x.clone();
  broken[1][0][0][0] = std::numeric_limits<float>::quiet_NaN();
  const at::Tensor y = group_norm(broken, std::nullopt, weight, bias, {1, 1e-5, true});
  CHECK(y[1].isnan().all().item<bool>());
  CHECK(!y[0].isnan().any().item<bool>());
}

TEST_CASE("SiLU is correct where exp overflows and underflows") {
  const c10::InferenceMode guard;
  const at::Tensor ends =
      at::tensor({-1e4F, -200.0F, -88.5F, -20.0F, -1e-3F, 0.0F, 1e-3F, 20.0F, 88.5F, 200.0F, 1e4F})
          .view({1, 1, 1, 11});
  // A group whose normalization is undone by weight and bias, so that the values stay the same.
  const at::Tensor deviation = ends.std(std::nullopt, c10::optional<at::Scalar>(0)), mean = ends.mean();
  const at::Tensor y = group_norm(ends, std::nullopt, deviation.view({1}), mean.view({1}), {1, 0.0, true});
  const at::Tensor expected =
      plain_norm(ends, std::nullopt, deviation.view({1}), mean.view({1}), {1, 0.0, true});
  CHECK(at::isfinite(y).all().item<bool>());
  CHECK(difference(y, expected) < 2e-3);  // relative to 1e4
}

TEST_CASE("nearest upsampling and a convolution fold into one transposed convolution") {
  const c10::InferenceMode guard;
  const at::Tensor x = random_tensor({2, 5, 6, 7}, 1), weight = random_tensor({9, 5, 3, 3}, 2),
                   bias = random_tensor({9}, 3);
  const at::Tensor enlarged = at::upsample_nearest2d(x.to(at::kDouble), {12, 14});
  const at::Tensor expected = at::conv2d(enlarged, weight.to(at::kDouble), bias.to(at::kDouble), 1, 1);
  const at::Tensor folded = at::conv_transpose2d(x.to(at::kDouble), folded_upsampling(weight.to(at::kDouble)),
                                                 bias.to(at::kDouble), 2, 1);
  CHECK(difference(folded, expected) < 1e-12);
  ConvLayer layer(weight, bias, {{1, 1}, {1, 1}, {1, 1}, true, false});
  CHECK(difference(layer.run(x, std::nullopt), expected) < 2e-5);
  CHECK(difference(layer.run(x, std::nullopt), expected) < 2e-5);
  // With more channels than pixels the image is upsampled; alternate between both with one weight.
  const at::Tensor small = x.slice(2, 0, 1).slice(3, 0, 3);
  const at::Tensor enlarged_small = at::upsample_nearest2d(small.to(at::kDouble), {2, 6});
  const at::Tensor expected_small =
      at::conv2d(enlarged_small, weight.to(at::kDouble), bias.to(at::kDouble), 1, 1);
  ConvLayer other(weight, bias, {{1, 1}, {1, 1}, {1, 1}, true, false});
  CHECK(difference(other.run(small, std::nullopt), expected_small) < 2e-5);
  CHECK(difference(other.run(x, std::nullopt), expected) < 2e-5);
  CHECK(difference(other.run(small, std::nullopt), expected_small) < 2e-5);
  CHECK(difference(layer.run(small, std::nullopt), expected_small) < 2e-5);
}

TEST_CASE("a packed layer handles all input sizes in any order") {
  const c10::InferenceMode guard;
  const at::Tensor weight = random_tensor({192, 64, 3, 3}, 1) * 0.1;
  ConvLayer layer(weight, std::nullopt, {{1, 1}, {1, 1}, {1, 1}, false, false});
  for (int round = 0; round < 2; ++round) {
    for (const auto& [images, side] :
         std::vector<std::pair<int64_t, int64_t>>{{1, 32}, {1, 4}, {8, 16}, {1, 1}, {3, 9}}) {
      const at::Tensor x = random_tensor({images, 64, side, side}, 2);
      CHECK(difference(layer.run(x, std::nullopt),
                       at::conv2d(x.to(at::kDouble), weight.to(at::kDouble), {}, 1, 1)) < 2e-4);
    }
  }
}

TEST_CASE("packed layers equal LibTorch's with residual and ReLU for small and odd shapes") {
  const c10::InferenceMode guard;
  const at::Tensor weight = random_tensor({24, 16, 3, 3}, 1), bias = random_tensor({24}, 2);
  for (const int64_t side : {1, 2, 4, 17}) {
    for (const int64_t stride : {1, 2}) {
      const at::Tensor x = random_tensor({1, 16, side, side}, 3);
      const at::Tensor plain =
          at::conv2d(x.to(at::kDouble), weight.to(at::kDouble), bias.to(at::kDouble), stride, 1);
      const at::Tensor residual = random_tensor(plain.sizes().vec(), 4),
                       each = random_tensor({1, 24, 1, 1}, 5);
      ConvLayer layer(weight, bias, {{1, 1}, {stride, stride}, {1, 1}, false, false});
      ConvLayer rectified(weight, bias, {{1, 1}, {stride, stride}, {1, 1}, false, true});
      CHECK(difference(layer.run(x, std::nullopt), plain) < 5e-5);
      CHECK(difference(layer.run(x, residual), plain + residual) < 5e-5);
      CHECK(difference(layer.run(x, each), plain + each) < 5e-5);
      CHECK(difference(rectified.run(x, std::nullopt), plain.relu()) < 5e-5);
      CHECK(difference(rectified.run(x, residual), (plain + residual).relu()) < 5e-5);
    }
  }
  const at::Tensor matrix = random_tensor({20, 12}, 6), offset = random_tensor({20}, 7),
                   tokens = random_tensor({2, 5, 12}, 8);
  const at::Tensor expected =
      at::linear(tokens.to(at::kDouble), matrix.to(at::kDouble), offset.to(at::kDouble));
  const at::Tensor residual = random_tensor({2, 5, 20}, 9);
  CHECK(difference(LinearLayer(matrix, offset).run(tokens, std::nullopt), expected) < 2e-5);
  CHECK(difference(LinearLayer(matrix, std::nullopt).run(tokens, residual), expected - offset + residual) <
        2e-5);
}

TEST_CASE("layers add residuals that broadcast or have another type like separate additions") {
  const c10::InferenceMode guard;
  const at::Tensor weight = random_tensor({32, 16, 3, 3}, 1) * 0.1, x = random_tensor({2, 16, 1, 1}, 2);
  const at::Tensor plain = at::conv2d(x, weight, {}, 1, 1);
  for (const bool relu : {false, true}) {
    ConvLayer layer(weight, std::nullopt, {{1, 1}, {1, 1}, {1, 1}, false, relu});
    for (const at::Tensor& residual :
         {random_tensor({2, 32, 5, 7}, 3), random_tensor({3, 1, 32, 4, 4}, 4).select(0, 0),
          random_tensor({2, 32, 1, 1}, 5).to(at::kDouble)}) {
      const at::Tensor sum = plain + residual, y = layer.run(x, residual);
      CHECK((y.scalar_type() == sum.scalar_type()));
      CHECK(difference(y, relu ? sum.relu() : sum) < 5e-5);
    }
  }
  const at::Tensor matrix = random_tensor({20, 12}, 6);
  for (const int64_t rows : {5, 300}) {  // few and many rows
    LinearLayer layer(matrix, std::nullopt);
    const at::Tensor tokens = random_tensor({2, rows, 12}, 8), expected = at::linear(tokens, matrix);
    for (const at::Tensor& residual :
         {random_tensor({1, rows, 20}, 9), random_tensor({20}, 10), random_tensor({4, 2, rows, 20}, 11)}) {
      CHECK(difference(layer.run(tokens, residual), expected + residual) < 2e-5);
    }
  }
}

TEST_CASE("layers accept a non-contiguous bias with every kernel") {
  const c10::InferenceMode guard;
  const at::Tensor weight = random_tensor({8, 6, 3, 3}, 1), x = random_tensor({2, 6, 9, 9}, 2),
                   dense = random_tensor({16}, 3);
  for (const at::Tensor& bias : {dense.slice(0, 0, 16, 2), dense.slice(0, 3, 4).expand({8})}) {
    for (const std::vector<int64_t>& padding : {std::vector<int64_t>{1, 1}, std::vector<int64_t>{1, 2}}) {
      const ConvLayer::Shape shape{padding, {1, 1}, {1, 1}};
      const at::Tensor expected =
          at::conv2d(x.to(at::kDouble), weight.to(at::kDouble), bias.to(at::kDouble), {1, 1}, padding);
      CHECK(difference(ConvLayer(weight, bias, shape).run(x, std::nullopt), expected) < 1e-5);
    }
    const at::Tensor matrix = random_tensor({8, 6}, 4), rows = random_tensor({5, 6}, 5);
    const at::Tensor expected =
        at::linear(rows.to(at::kDouble), matrix.to(at::kDouble), bias.to(at::kDouble));
    CHECK(difference(LinearLayer(matrix, bias, false).run(rows, std::nullopt), expected) < 1e-5);
    const auto half = [](const at::Tensor& t) { return t.to(at::kBFloat16); };
    const at::Tensor short_bias = half(dense).as_strided({8}, {bias.stride(0)}, bias.storage_offset());
    CHECK(difference(LinearLayer(half(matrix), short_bias, false).run(half(rows), std::nullopt), expected) <
          0.05);
  }
}

TEST_CASE("bfloat16 layers fall back to LibTorch on a CPU that oneDNN does not support") {
  const c10::InferenceMode guard;
  const auto half = [](const at::Tensor& t) { return t.to(at::kBFloat16); };
  const at::Tensor weight = half(random_tensor({8, 6, 3, 3}, 1) * 0.2), bias = half(random_tensor({8}, 2)),
                   x = half(random_tensor({2, 6, 8, 8}, 3));
  const at::Tensor each = half(random_tensor({1, 8, 1, 1}, 4));
  for (const bool upsampled : {false, true}) {
    const at::Tensor input =
        upsampled ? at::upsample_nearest2d(x.to(at::kDouble), {16, 16}) : x.to(at::kDouble);
    const at::Tensor plain = at::conv2d(input, weight.to(at::kDouble), bias.to(at::kDouble), 1, 1);
    const at::Tensor residual = half(random_tensor(plain.sizes().vec(), 5));
    ConvLayer layer(weight, bias, {{1, 1}, {1, 1}, {1, 1}, upsampled, true}, CpuFeatures{});
    for (const at::Tensor& added : {residual, each})
      CHECK(difference(layer.run(x, added), (plain + added).relu()) < 0.1);
    const at::Tensor y = layer.run(x, std::nullopt);
    CHECK(difference(y, plain.relu()) < 0.1);
    CHECK((y.scalar_type() == at::kBFloat16));
    CHECK(y.is_contiguous(at::MemoryFormat::ChannelsLast));
    CHECK(std::string(layer.kernel()) == "LibTorch");
  }
  const at::Tensor matrix = half(random_tensor({20, 12}, 6)), offset = half(random_tensor({20}, 7)),
                   tokens = half(random_tensor({2, 5, 12}, 8));
  const at::Tensor expected =
      at::linear(tokens.to(at::kDouble), matrix.to(at::kDouble), offset.to(at::kDouble));
  const at::Tensor residual = half(random_tensor({2, 5, 20}, 9));
  LinearLayer layer(matrix, offset, false, CpuFeatures{});
  CHECK(difference(layer.run(tokens, std::nullopt), expected) < 0.1);
  CHECK(difference(layer.run(tokens, residual), expected + residual) < 0.1);
  CHECK(std::string(layer.kernel()) == "LibTorch");
}

TEST_CASE("bfloat16 layers use oneDNN on a CPU that it supports") {
  SKIP_UNLESS(at::hasMKLDNN() && onednn_accepts(at::kBFloat16), "needs AVX-512 BW, VL and DQ");
  const c10::InferenceMode guard;
  const at::Tensor weight = random_tensor({8, 6, 3, 3}, 1).to(at::kBFloat16),
                   x = random_tensor({2, 6, 8, 8}, 2).to(at::kBFloat16);
  ConvLayer convolution(weight, std::nullopt, {{1, 1}, {1, 1}, {1, 1}});
  CHECK(difference(convolution.run(x, std::nullopt),
                   at::conv2d(x.to(at::kDouble), weight.to(at::kDouble), {}, 1, 1)) < 0.1);
  CHECK(std::string(convolution.kernel()) == "oneDNN");
  const at::Tensor matrix = random_tensor({20, 8}, 3).to(at::kBFloat16);
  LinearLayer linear(matrix, std::nullopt);
  CHECK(difference(linear.run(x, std::nullopt), at::linear(x.to(at::kDouble), matrix.to(at::kDouble))) < 0.1);
  CHECK(std::string(linear.kernel()) == "oneDNN");
}

TEST_CASE("padding wider than the kernel falls back to oneDNN") {
  const c10::InferenceMode guard;
  const at::Tensor weight = random_tensor({8, 6, 3, 3}, 1), x = random_tensor({1, 6, 4, 4}, 2);
  ConvLayer layer(weight, std::nullopt, {{5, 5}, {1, 1}, {1, 1}});
  CHECK(difference(layer.run(x, std::nullopt),
                   at::conv2d(x.to(at::kDouble), weight.to(at::kDouble), {}, {1, 1}, {5, 5})) < 1e-5);
  CHECK(std::string(layer.kernel()) == "oneDNN");
}

#ifdef DIAD_HAS_ADDRESS_LIMIT

TEST_CASE("a layer that ran out of memory during packing is packed by the next call") {
  SKIP_UNLESS(DirectConv::available(), "needs AVX2");
  const c10::InferenceMode guard;
  const at::Tensor weight = random_tensor({1024, 1024, 3, 3}, 1),
                   x = random_tensor({1, 1024, 2, 2}, 2);  // 36 MiB
  const ConvLayer::Shape shape{{1, 1}, {2, 2}, {1, 1}};
  ConvLayer layer(weight, std::nullopt, shape), other(weight, std::nullopt, shape);
  {
    const AddressLimit limit(address_space() + (16 << 20));
    CHECK_THROWS(layer.run(x, std::nullopt));
  }
  const at::Tensor expected = other.run(x, std::nullopt);
  CHECK(layer.run(x, std::nullopt).equal(expected));
  CHECK(std::string(layer.kernel()) == "direct");
}

#endif

TEST_CASE("layers reject inputs that do not match their weights") {
  const c10::InferenceMode guard;
  ConvLayer layer(random_tensor({32, 16, 3, 3}, 1), std::nullopt, {{0, 0}, {2, 2}, {1, 1}, false, false});
  const auto image = [](int64_t channels, int64_t width) {
    return random_tensor({1, channels, 9, width}, 2);
  };
  CHECK_THROWS_WITH(layer.run(image(8, 9), std::nullopt), doctest::Contains("Expected [N, 16, H, W]"));
  CHECK_THROWS_WITH(layer.run(image(16, 9)[0], std::nullopt), doctest::Contains("Expected [N, 16, H, W]"));
  CHECK_THROWS_WITH(layer.run(image(16, 9).to(at::kDouble), std::nullopt),
                    doctest::Contains("Expected Float"));
  CHECK_THROWS_WITH(layer.run(image(16, 2), std::nullopt), doctest::Contains("larger than the kernel"));
  CHECK(layer.run(image(16, 9), std::nullopt).sizes() == at::IntArrayRef({1, 32, 4, 4}));
  LinearLayer linear(random_tensor({256, 1}, 3), std::nullopt);
  const at::Tensor wide = random_tensor({1, 768}, 4), half = random_tensor({4, 1}, 4).to(at::kHalf);
  CHECK_THROWS_WITH(linear.run(wide, std::nullopt), doctest::Contains("Expected [..., 1]"));
  CHECK_THROWS_WITH(linear.run(half, std::nullopt), doctest::Contains("Expected Float"));
}

TEST_CASE("GroupNorm falls back to LibTorch for other sizes and types, including errors") {
  const c10::InferenceMode guard;
  const at::Tensor weight = random_tensor({8}, 1), bias = random_tensor({8}, 2);
  const auto plain = [&](const at::Tensor& x) { return at::silu(at::group_norm(x, 4, weight, bias, 1e-5)); };
  const GroupNormShape shape{4, 1e-5, true};
  for (const at::Tensor& x : {random_tensor({2, 8, 30}, 3), random_tensor({2, 8, 2, 3, 4}, 4)}) {
    CHECK(difference(group_norm(x, std::nullopt, weight, bias, shape), plain(x)) < 1e-5);
  }
  CHECK(group_norm(at::zeros({0, 8, 4, 4}), std::nullopt, weight, bias, shape).sizes() ==
        at::IntArrayRef({0, 8, 4, 4}));
  const at::Tensor half = random_tensor({2, 8, 3, 3}, 6).to(at::kHalf);
  CHECK(group_norm(half, std::nullopt, weight, bias, shape).equal(plain(half)));
  // Shifts that are not per channel but have as many values.
  const at::Tensor x = random_tensor({2, 8, 3, 8}, 7);
  for (const at::Tensor& shift :
       {random_tensor({1, 1, 1, 8}, 8), random_tensor({8, 1, 1}, 9), random_tensor({1, 1, 3, 1}, 10)}) {
    CHECK(difference(group_norm(x, shift, weight, bias, shape), plain(x + shift)) < 1e-5);
  }
  for (const int64_t groups : {0, 3, -4}) {
    const GroupNormShape impossible{groups, 1e-5, false};
    CHECK_THROWS(group_norm(x, std::nullopt, weight, bias, impossible));
  }
  CHECK_THROWS(group_norm(x, std::nullopt, weight.narrow(0, 0, 4), bias, shape));
}
