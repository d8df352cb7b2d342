// Tests attention, LayerNorm and GEGLU against LibTorch's operators in double.
#include "cpu/transformer_ops.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/instance_norm.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/linspace.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>

#include <array>
#include <limits>
#include <vector>

#include "cpu/group_norm.h"
#include "cpu/kernel_dispatch.h"
#include "difference.h"
#include "random_tensor.h"
#include "support.h"
#include "support/thread_pool.h"

using namespace diad;

namespace {

// Splits [N, L, h d] into heads, as in the graphs.
at::Tensor in_heads(const at::Tensor& x, int64_t heads) {
  return x.reshape({x.size(0), x.size(1), heads, x.size(2) / heads}).transpose(1, 2);
}

at::Tensor in_double(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  return at::scaled_dot_product_attention(q.to(at::kDouble), k.to(at::kDouble), v.to(at::kDouble));
}

}  // namespace

TEST_CASE("attention equals LibTorch's for all numbers of queries, keys and channels") {
  const c10::InferenceMode guard;
  ThreadPool pool(2);
  const ThreadPoolScope sharing(pool);
  const int64_t heads = 3;
  for (const int64_t depth : {1, 8, 24, 32, 40, 80}) {
    for (const auto& [queries, keys] : std::vector<std::pair<int64_t, int64_t>>{
             {1, 1}, {16, 16}, {64, 77}, {65, 31}, {200, 130}, {3, 300}}) {
      CAPTURE(depth);
      CAPTURE(queries);
      CAPTURE(keys);
      const at::Tensor q = in_heads(random_tensor({2, queries, heads * depth}, 1), heads),
                       k = in_heads(random_tensor({2, keys, heads * depth}, 2), heads),
                       v = in_heads(random_tensor({2, keys, heads * depth}, 3), heads);
      const at::Tensor y = attention(q, k, v);
      CHECK(difference(y, in_double(q, k, v)) < 3e-6);
      if (cpu_kernels() != nullptr) CHECK(y.transpose(1, 2).is_contiguous());
    }
  }
}

TEST_CASE("attention supports shared keys, other strides and large products, and NaN stays in its image") {
  const c10::InferenceMode guard;
  const at::Tensor q = random_tensor({2, 4, 40, 24}, 1), k = random_tensor({1, 4, 77, 24}, 2),
                   v = random_tensor({1, 4, 77, 24}, 3);
  const at::Tensor shared_k = k.expand({2, 4, 77, 24}), shared_v = v.expand({2, 4, 77, 24});
  CHECK(difference(attention(q, shared_k, shared_v), in_double(q, shared_k, shared_v)) < 3e-6);
  const at::Tensor crosswise = random_tensor({2, 4, 24, 40}, 4).transpose(2, 3);
  CHECK(difference(attention(crosswise, shared_k, shared_v), in_double(crosswise, shared_k, shared_v)) <
        3e-6);
  CHECK(difference(attention(100 * q, 100 * shared_k, shared_v),
                   in_double(100 * q, 100 * shared_k, shared_v)) < 1e-4);
  at::Tensor broken = q.clone();
  broken.select(0, 1).fill_(std::numeric_limits<float>::quiet_NaN());
  const at::Tensor y = attention(broken, shared_k, shared_v);
  CHECK(y.select(0, 1).isnan().all().item<bool>());
  CHECK_FALSE(y.select(0, 0).isnan().any().item<bool>());
}

TEST_CASE("attention is accurate for very large products") {
  const c10::InferenceMode guard;
  const at::Tensor q = random_tensor({1, 2, 9, 8}, 1), k = random_tensor({1, 2, 50, 8}, 2),
                   v = random_tensor({1, 2, 50, 8}, 3);
  for (const double scale : {1e4, 1e5, 1e6}) {
    CAPTURE(scale);
    CHECK(difference(attention(scale * q, scale * k, v), in_double(scale * q, scale * k, v)) < 1e-5);
  }
}

TEST_CASE("attention falls back to LibTorch for other inputs, including errors") {
  const c10::InferenceMode guard;
  const at::Tensor half = random_tensor({1, 2, 5, 8}, 1).to(at::kBFloat16),
                   flat = random_tensor({2, 5, 8}, 2);
  CHECK(attention(half, half, half).equal(at::scaled_dot_product_attention(half, half, half)));
  CHECK(attention(flat, flat, flat).equal(at::scaled_dot_product_attention(flat, flat, flat)));
  CHECK_THROWS(attention(random_tensor({1, 2, 5, 8}, 1), random_tensor({1, 2, 5, 9}, 1),
                         random_tensor({1, 2, 5, 9}, 1)));
}

TEST_CASE("the number of threads does not change attention, LayerNorm and GEGLU") {
  const c10::InferenceMode guard;
  const at::Tensor x = random_tensor({2, 300, 96}, 1), weight = random_tensor({96}, 2),
                   bias = random_tensor({96}, 3), q = in_heads(x, 4);
  const std::array<at::Tensor, 3> alone{attention(q, q, q), layer_norm(x, weight, bias, 1e-5), geglu(x)};
  ThreadPool pool(2);
  const ThreadPoolScope sharing(pool);
  CHECK(attention(q, q, q).equal(alone[0]));
  CHECK(layer_norm(x, weight, bias, 1e-5).equal(alone[1]));
  CHECK(geglu(x).equal(alone[2]));
}

TEST_CASE("LayerNorm is accurate for rows of any width and large means") {
  const c10::InferenceMode guard;
  for (const int64_t width : {1, 7, 16, 24, 96, 1283}) {
    CAPTURE(width);
    const at::Tensor weight = random_tensor({width}, 1), bias = random_tensor({width}, 2);
    const at::Tensor x = random_tensor({3, 5, width}, 3), far = x + 100;
    const auto exact = [&](const at::Tensor& from) {
      return at::layer_norm(from.to(at::kDouble), {width}, weight.to(at::kDouble), bias.to(at::kDouble),
                            1e-5);
    };
    CHECK(difference(layer_norm(x, weight, bias, 1e-5), exact(x)) < 1e-5);
    if (width > 1) CHECK(difference(layer_norm(far, weight, bias, 1e-5), exact(far)) < 2e-3);
  }
  const at::Tensor one = at::ones({4});
  CHECK(layer_norm(at::zeros({0, 4}), one, one, 1e-5).sizes() == at::IntArrayRef({0, 4}));
  CHECK_THROWS(layer_norm(at::zeros({2, 5}), one, one, 1e-5));
  CHECK(layer_norm(at::full({1, 4}, std::numeric_limits<float>::quiet_NaN()), one, one, 1e-5)
            .isnan()
            .all()
            .item<bool>());
}

TEST_CASE("GEGLU is accurate for any width and for large positive and negative gates") {
  const c10::InferenceMode guard;
  for (const int64_t width : {1, 15, 16, 100}) {
    CAPTURE(width);
    const at::Tensor x = random_tensor({3, 4, 2 * width}, 1) * 4;
    const std::vector<at::Tensor> halves = x.to(at::kDouble).chunk(2, -1);
    CHECK(difference(geglu(x), halves[0] * at::gelu(halves[1])) < 5e-6);
  }
  const at::Tensor gates = at::linspace(-30, 30, 6001, at::kFloat), values = at::ones({6001});
  CHECK(difference(geglu(at::stack({values, gates}, 1)).squeeze(1), at::gelu(gates.to(at::kDouble))) < 2e-6);
  CHECK(geglu(at::full({1, 2}, std::numeric_limits<float>::quiet_NaN())).isnan().all().item<bool>());
  CHECK(geglu(at::zeros({0, 8})).sizes() == at::IntArrayRef({0, 4}));
  const at::Tensor half = random_tensor({2, 8}, 2).to(at::kBFloat16);
  CHECK(geglu(half).equal(half.chunk(2, -1)[0] * at::gelu(half.chunk(2, -1)[1])));
}

TEST_CASE("InstanceNorm equals LibTorch's with and without SiLU") {
  const c10::InferenceMode guard;
  const auto exact = [](const at::Tensor& x, bool silu) {
    const at::Tensor y = at::instance_norm(x.to(at::kDouble), {}, {}, {}, {}, true, 0, 1e-5, false);
    return silu ? at::silu(y) : y;
  };
  for (const int64_t side : {1, 2, 4, 9, 16}) {
    for (const bool silu : {false, true}) {
      const at::Tensor x = random_tensor({2, 20, side, side}, 1);
      CHECK(difference(instance_norm(x, 1e-5, silu), exact(x, silu)) <
            (side == 1 ? 2e-4 : 2e-5));  // a single value is divided by eps only
    }
  }
}
