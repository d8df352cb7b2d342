#include "cpu/transformer_ops.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/scaled_dot_product_attention.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/conv_tiling.h"
#include "cpu/kernel_dispatch.h"
#include "support/mmap_pool.h"
#include "support/thread_pool.h"

namespace diad {

namespace {

using kernels::kBlock;

constexpr int64_t kValuesOfAThread = 1 << 14;
constexpr int64_t kQueriesAtOnce = 64;  // their products with all keys fit into the L2 cache
// Padding in floats: rows whose stride is a power of two would contend for the same sets of the L1 cache.
constexpr int64_t kBetweenRows = 16;

// [count, width] with rows `stride` apart -> [count / 32, width, 32], zero-padded.
void pack_rows(const float* from, int64_t stride, int64_t count, int64_t width, float* to) {
  for (int64_t first = 0; first < count; first += kBlock, to += width * kBlock) {
    const int64_t filled = std::min(kBlock, count - first);
    for (int64_t i = 0; i < width; ++i) {
      for (int64_t row = 0; row < filled; ++row) to[i * kBlock + row] = from[(first + row) * stride + i];
      std::fill_n(to + i * kBlock + filled, kBlock - filled, 0.0F);
    }
  }
}

// [count, width] with rows `stride` apart -> [width / 32, count, 32], zero-padded.
void pack_columns(const float* from, int64_t stride, int64_t count, int64_t width, float* to) {
  for (int64_t first = 0; first < width; first += kBlock, to += count * kBlock) {
    const int64_t filled = std::min(kBlock, width - first);
    for (int64_t row = 0; row < count; ++row) {
      std::copy_n(from + row * stride + first, filled, to + row * kBlock);
      std::fill_n(to + row * kBlock + filled, kBlock - filled, 0.0F);
    }
  }
}

void multiply(const PlainProduct& product) {
  const kernels::ConvArguments arguments = product.arguments();
  for (int64_t block = 0; block < blocks_of(product.out); ++block)
    cpu_kernels()->convolution(arguments, block, 0, product.count);
}

// The size limit guards against expanded tensors, which can be larger than any memory.
bool is_plain(const at::Tensor& x) {
  constexpr int64_t kMostValues = int64_t{1} << 40;
  return x.dim() == 4 && x.scalar_type() == at::kFloat && x.device().is_cpu() && x.numel() > 0 &&
         x.numel() <= kMostValues;
}

at::Tensor with_dense_rows(const at::Tensor& x) { return x.stride(3) == 1 ? x : x.contiguous(); }

}  // namespace

at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  const bool fits = cpu_kernels() != nullptr && is_plain(q) && is_plain(k) && k.sizes() == v.sizes() &&
                    v.scalar_type() == at::kFloat && q.size(0) == k.size(0) && q.size(1) == k.size(1) &&
                    q.size(3) == k.size(3);
  if (!fits) return at::scaled_dot_product_attention(q, k, v);
  const at::Tensor queries = with_dense_rows(q), keys = with_dense_rows(k), values = with_dense_rows(v);
  const int64_t images = q.size(0), heads = q.size(1), length = q.size(2), depth = q.size(3),
                count = k.size(2);
  const int64_t of_keys = blocks_of(count) * kBlock * depth, of_values = blocks_of(depth) * kBlock * count;
  const at::Tensor packed = pooled_empty({images, heads, of_keys + of_values}, at::kFloat);
  at::Tensor y = pooled_empty({images, length, heads, depth}, at::kFloat);
  const std::vector<float> zeros(static_cast<size_t>(blocks_of(std::max(count, depth)) * kBlock));
  auto* const weights = packed.mutable_data_ptr<float>();
  auto* const to = y.mutable_data_ptr<float>();
  const auto start_of = [heads](const at::Tensor& x, int64_t head) {
    return x.const_data_ptr<float>() + head / heads * x.stride(0) + head % heads * x.stride(1);
  };

  parallel_for(images * heads, std::max<int64_t>(1, kValuesOfAThread / (of_keys + of_values)),
               [&](int64_t begin, int64_t end) {
                 for (int64_t head = begin; head < end; ++head) {
                   float* const packed_keys = weights + head * (of_keys + of_values);
                   pack_rows(start_of(keys, head), keys.stride(2), count, depth, packed_keys);
                   pack_columns(start_of(values, head), values.stride(2), count, depth,
                                packed_keys + of_keys);
                 }
               });

  const int64_t between = count + kBetweenRows;
  const int64_t pieces = (length + kQueriesAtOnce - 1) / kQueriesAtOnce;
  const double work = 4.0 * static_cast<double>(std::min(length, kQueriesAtOnce) * count * (depth + 8));
  const auto grain = std::max<int64_t>(1, static_cast<int64_t>(kWorkOfAThread / work));
  const auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(depth)));
  parallel_for(images * heads * pieces, grain, [&](int64_t begin, int64_t end) {
    thread_local std::vector<float> space;
    space.resize(std::max(space.size(), static_cast<size_t>(kQueriesAtOnce * (between + depth + 1))));
    float *const products = space.data(), *const sums = products + kQueriesAtOnce * between,
                 *const rows = sums + kQueriesAtOnce;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t head = task / pieces, first = task % pieces * kQueriesAtOnce,
                    some = std::min(kQueriesAtOnce, length - first);
      const float* const packed_keys = weights + head * (of_keys + of_values);
      const float* const from = start_of(queries, head) + first * queries.stride(2);
      multiply({from, queries.stride(2), some, depth, packed_keys, zeros.data(), count, products, between});
      cpu_kernels()->rows.softmax_exp(products, some, count, between, scale, sums);
      multiply({products, between, some, count, packed_keys + of_keys, zeros.data(), depth, rows, depth});
      cpu_kernels()->rows.divide(rows, sums, some, depth, heads * depth,
                                 to + ((head / heads * length + first) * heads + head % heads) * depth);
    }
  });
  return y.transpose(1, 2);
}

at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps) {
  const bool fits = cpu_kernels() != nullptr && x.dim() > 0 && x.numel() > 0 &&
                    x.scalar_type() == at::kFloat && weight.numel() == x.size(-1);
  if (!fits) return at::layer_norm(x, weight.sizes(), weight, bias, eps);
  const at::Tensor input = x.contiguous();
  at::Tensor output = pooled_empty(input.sizes(), at::kFloat);
  const int64_t width = x.size(-1);
  const auto *const from = input.const_data_ptr<float>(), *const gain = weight.const_data_ptr<float>(),
                    *const base = bias.const_data_ptr<float>();
  auto* const to = output.mutable_data_ptr<float>();
  parallel_for(x.numel() / width, std::max<int64_t>(1, kValuesOfAThread / width),
               [&](int64_t begin, int64_t end) {
                 cpu_kernels()->rows.normalize(from + begin * width, gain, base, end - begin, width,
                                               static_cast<float>(eps), to + begin * width);
               });
  return output;
}

at::Tensor geglu(const at::Tensor& x) {
  const bool fits = cpu_kernels() != nullptr && x.dim() > 0 && x.numel() > 0 &&
                    x.scalar_type() == at::kFloat && x.size(-1) % 2 == 0;
  if (!fits) {
    const std::vector<at::Tensor> halves = x.chunk(2, -1);
    return halves.at(0) * at::gelu(halves.at(1));
  }
  const at::Tensor input = x.contiguous();
  std::vector<int64_t> size = x.sizes().vec();
  const int64_t width = size.back() /= 2;
  at::Tensor output = pooled_empty(size, at::kFloat);
  const auto* const from = input.const_data_ptr<float>();
  auto* const to = output.mutable_data_ptr<float>();
  parallel_for(output.numel() / width, std::max<int64_t>(1, kValuesOfAThread / width),
               [&](int64_t begin, int64_t end) {
                 cpu_kernels()->rows.geglu(from + 2 * begin * width, end - begin, width, to + begin * width);
               });
  return output;
}

}  // namespace diad
