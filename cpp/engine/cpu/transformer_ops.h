// What a transformer block has beside linear layers, in float32 on the CPU: each in one pass, shared with the
// worker threads (support/thread_pool.h).
#pragma once

#include <ATen/core/Tensor.h>

namespace diad {

// Softmax(q k^T / sqrt(d)) v: q [N, h, L, d], k and v [N, h, M, d] (any strides) -> [N, h, L, d], in memory
// [N, L, h, d], as the next linear layer reads it. What is not float32 of those sizes goes to LibTorch's
// operator, which says what is wrong with it.
[[nodiscard]] at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v);

// (x - mean) / sqrt(variance + eps) * weight + bias over the last axis, x [..., C], weight and bias [C].
[[nodiscard]] at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                                    double eps);

// x [..., 2 D] -> [..., D]: the first half times GELU of the second (the exact one, with the normal
// distribution function).
[[nodiscard]] at::Tensor geglu(const at::Tensor& x);

}  // namespace diad
