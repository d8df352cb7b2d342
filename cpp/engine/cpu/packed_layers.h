// Convolutions and linear layers whose weights are packed for the CPU once, with surrounding operators fused.
//
// oneDNN computes in a blocked layout and would reorder an unpacked weight on every call; LibTorch does not
// use oneDNN at all for small inputs. The layers are TorchScript custom classes, so that a frozen graph can
// hold them as constants. optimize_for_cpu (cpu/cpu_graph_passes.h) inserts them.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/custom_class.h>

#include <array>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "cpu/cpu_features.h"
#include "cpu/direct_conv.h"
#include "cpu/int8_conv.h"
#include "cpu/winograd_conv.h"

namespace diad {

// A 2-d convolution with one group, optionally after nearest 2x upsampling; float32, or bfloat16 with oneDNN.
// If oneDNN does not support bfloat16 on this CPU (cpu_features.h), it falls back to LibTorch's convolution.
// oneDNN's layout depends on the input size, so weights are packed when a size is first seen and cached; the
// original weight is then released. Not thread-safe.
class ConvLayer final : public torch::CustomClassHolder {
 public:
  struct Shape {
    std::vector<int64_t> padding, stride, dilation;
    // Upsamples the input 2x by repetition; needs a 3 x 3 kernel, stride 1 and padding 1.
    bool upsampled = false;
    bool relu = false;       // ends with max(0, .)
    int64_t runs = 1;        // how often an image passes; more passes justify more memory
    bool quantized = false;  // uses 8-bit integers where QuantizedConv supports the weight
    // With relu: also applies min(upper, .), 6 for ReLU6.
    float upper = std::numeric_limits<float>::infinity();
  };

  ConvLayer(at::Tensor weight, std::optional<at::Tensor> bias, Shape shape,
            const CpuFeatures& features = cpu_features());

  // x [N, C, H, W] (any strides) -> [N, K, H', W'], channels-last. `residual`, of that size or broadcast with
  // it, is added before the relu. Throws c10::Error if x does not match the weight.
  at::Tensor run(const at::Tensor& x, const std::optional<at::Tensor>& residual);

  [[nodiscard]] std::array<int64_t, 4> output_size(const at::Tensor& x) const {
    return output_size(x, shape_.upsampled ? 2 : 1);
  }
  [[nodiscard]] const std::array<int64_t, 4>& weight_size() const { return size_; }  // [K, C, h, w]
  [[nodiscard]] bool upsampled() const { return shape_.upsampled; }
  [[nodiscard]] const char* kernel() const;  // the implementation, once it has run

 private:
  struct Packed {
    at::Tensor weight, layout;  // in oneDNN's layout, and the description of that layout
  };

  void choose_for(const at::Tensor& x);  // packs for one of the three kernels below, or none
  void pack_for(const at::Tensor& x);
  void check(const at::Tensor& x) const;
  // The residual is empty or broadcasts to the output's size.
  at::Tensor computed(const at::Tensor& x, const std::optional<at::Tensor>& residual, bool relu);
  at::Tensor activated(const at::Tensor& x, const std::optional<at::Tensor>& residual, bool relu);
  at::Tensor convolved(const at::Tensor& x, const std::optional<at::Tensor>& residual, bool relu);
  at::Tensor convolved_plainly(const at::Tensor& x, const std::optional<at::Tensor>& residual,
                               bool relu) const;
  const at::Tensor& packed_for(const at::Tensor& x);
  [[nodiscard]] std::array<int64_t, 4> output_size(const at::Tensor& x,
                                                   int64_t times) const;  // x upsampled `times`

  at::Tensor plain_;  // undefined once packed
  std::unique_ptr<DirectConv> direct_;
  std::unique_ptr<WinogradConv> winograd_;
  std::unique_ptr<QuantizedConv> quantized_;
  bool chosen_ = false;
  at::Tensor folded_;  // packed weight of the transposed convolution, created on first use
  std::vector<Packed> packed_;
  std::map<std::vector<int64_t>, size_t> by_size_;  // input size -> index into packed_
  std::optional<at::Tensor> bias_;
  Shape shape_;
  std::array<int64_t, 4> size_;  // of the weight
  c10::ScalarType type_;
  bool is_plain_;  // oneDNN does not accept the type on this CPU
};

// y = x W^T + b in float32, or bfloat16 with oneDNN. Like ConvLayer, falls back to LibTorch's operator if
// oneDNN does not accept bfloat16.
class LinearLayer final : public torch::CustomClassHolder {
 public:
  LinearLayer(const at::Tensor& weight, std::optional<at::Tensor> bias, bool quantized = false,
              const CpuFeatures& features = cpu_features());

  // x [..., I] -> [..., O]; `residual`, of that size or broadcast with it, is added. Throws c10::Error if x
  // does not match the weight.
  at::Tensor run(const at::Tensor& x, const std::optional<at::Tensor>& residual);

  [[nodiscard]] int64_t out_features() const { return out_features_; }
  [[nodiscard]] const char* kernel() const;  // the implementation, once it has run

 private:
  void pack();
  // The residual is empty or has the output's size.
  at::Tensor computed(const at::Tensor& x, const std::optional<at::Tensor>& residual);

  at::Tensor plain_;  // undefined once packed
  bool wants_quantized_;
  std::unique_ptr<DirectConv> direct_;
  std::unique_ptr<QuantizedConv> quantized_;
  at::Tensor packed_;  // for oneDNN
  std::optional<at::Tensor> bias_;
  int64_t in_features_, out_features_;
  c10::ScalarType type_;
  bool is_plain_;  // oneDNN does not accept the type on this CPU
};

// Returns the weights of a 4 x 4 transposed convolution, stride 2, padding 1, that equals nearest 2x
// upsampling followed by a 3 x 3 convolution with padding 1: along each axis the taps (w0, w1, w2) become
// (w2, w1 + w2, w0 + w1, w0). weight [K, C, 3, 3] -> [C, K, 4, 4].
[[nodiscard]] at::Tensor folded_upsampling(const at::Tensor& weight);

}  // namespace diad
