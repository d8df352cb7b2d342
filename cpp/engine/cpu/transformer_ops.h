// Operators of a transformer block other than linear layers, float32 on the CPU. Each makes one pass over its
// data on the thread pool (support/thread_pool.h).
#pragma once

#include <ATen/core/Tensor.h>

namespace diad {

// softmax(q k^T / sqrt(d)) v: q [N, h, L, d], k and v [N, h, M, d] (any strides) -> [N, h, L, d], stored as
// [N, L, h, d] for the next linear layer. Other types and sizes fall back to LibTorch's operator, which
// reports errors.
[[nodiscard]] at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v);

// (x - mean) / sqrt(variance + eps) * weight + bias over the last axis, x [..., C], weight and bias [C].
[[nodiscard]] at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                                    double eps);

// x [..., 2 D] -> [..., D]: first half times GELU of the second half (exact GELU, with the normal CDF).
[[nodiscard]] at::Tensor geglu(const at::Tensor& x);

}  // namespace diad
