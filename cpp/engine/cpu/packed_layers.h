// Convolutions and linear layers whose weights are laid out for the CPU once, at load, and what surrounds
// them fused in.
//
// oneDNN computes in a blocked layout and would re-lay a plain weight on every call; small inputs would not
// reach oneDNN at all. The layers are TorchScript custom classes, so that a frozen graph can hold them as
// constants; optimize_for_cpu (cpu_passes.h) puts them there.
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

// A 2-d convolution, optionally after nearest 2x upsampling; float32, or bfloat16 with oneDNN alone;
// groups 1. In bfloat16 on a CPU that oneDNN does not support (cpu_features.h) LibTorch's plain convolution
// computes it. The layout oneDNN wants depends on the input's size, so a weight is laid out when a size is
// first seen and kept for the next time; the plain weight is then let go. Not for several threads at a time.
class ConvLayer final : public torch::CustomClassHolder {
 public:
  struct Shape {
    std::vector<int64_t> padding, stride, dilation;
    bool upsampled =
        false;  // the input is first enlarged 2x by repetition; needs a 3 x 3 kernel, stride 1, padding 1
    bool relu = false;       // ends with max(0, .)
    int64_t runs = 1;        // how often an image passes: what speed is worth in memory
    bool quantized = false;  // in 8-bit integers, where QuantizedConv takes the weight
    float upper = std::numeric_limits<float>::infinity();  // with relu: and with min(upper, .), 6 for ReLU6
  };

  ConvLayer(at::Tensor weight, std::optional<at::Tensor> bias, Shape shape,
            const CpuFeatures& features = cpu_features());

  // x [N, C, H, W] (any strides) -> [N, K, H', W'], channels last; `residual`, of that size or broadcast with
  // it, is added before the relu. Throws c10::Error where x does not fit the weight.
  at::Tensor run(const at::Tensor& x, const std::optional<at::Tensor>& residual);

  [[nodiscard]] std::array<int64_t, 4> output_size(const at::Tensor& x) const {
    return output_size(x, shape_.upsampled ? 2 : 1);
  }
  [[nodiscard]] const std::array<int64_t, 4>& weight_size() const { return size_; }  // [K, C, h, w]
  [[nodiscard]] bool upsampled() const { return shape_.upsampled; }
  [[nodiscard]] const char* kernel() const;  // what computes it, once it has run

 private:
  struct Packed {
    at::Tensor weight, layout;  // in oneDNN's layout, and that layout's description
  };

  void choose_for(const at::Tensor& x);  // packs for one of the three below, or none
  void pack_for(const at::Tensor& x);
  void check(const at::Tensor& x) const;
  // The residual is none or broadcasts to the output's size.
  at::Tensor computed(const at::Tensor& x, const std::optional<at::Tensor>& residual, bool relu);
  at::Tensor activated(const at::Tensor& x, const std::optional<at::Tensor>& residual, bool relu);
  at::Tensor convolved(const at::Tensor& x, const std::optional<at::Tensor>& residual, bool relu);
  at::Tensor convolved_plainly(const at::Tensor& x, const std::optional<at::Tensor>& residual,
                               bool relu) const;
  const at::Tensor& packed_for(const at::Tensor& x);
  [[nodiscard]] std::array<int64_t, 4> output_size(const at::Tensor& x,
                                                   int64_t times) const;  // x enlarged `times`

  at::Tensor plain_;  // undefined once packed
  std::unique_ptr<DirectConv> direct_;
  std::unique_ptr<WinogradConv> winograd_;
  std::unique_ptr<QuantizedConv> quantized_;
  bool chosen_ = false;
  at::Tensor folded_;  // the transposed convolution's, packed, once needed
  std::vector<Packed> packed_;
  std::map<std::vector<int64_t>, size_t> by_size_;  // of the input, into packed_
  std::optional<at::Tensor> bias_;
  Shape shape_;
  std::array<int64_t, 4> size_;  // of the weight
  c10::ScalarType type_;
  bool is_plain_;  // oneDNN does not accept the type on this CPU
};

// y = x W^T + b, float32, or bfloat16 with oneDNN alone; as ConvLayer, LibTorch's plain operator where oneDNN
// does not accept bfloat16.
class LinearLayer final : public torch::CustomClassHolder {
 public:
  LinearLayer(const at::Tensor& weight, std::optional<at::Tensor> bias, bool quantized = false,
              const CpuFeatures& features = cpu_features());

  // x [..., I] -> [..., O]; `residual`, of that size or broadcast with it, is added. Throws c10::Error where
  // x does not fit the weight.
  at::Tensor run(const at::Tensor& x, const std::optional<at::Tensor>& residual);

  [[nodiscard]] int64_t out_features() const { return out_features_; }
  [[nodiscard]] const char* kernel() const;  // what computes it, once it has run

 private:
  void pack();
  // The residual is none or of the output's size.
  at::Tensor computed(const at::Tensor& x, const std::optional<at::Tensor>& residual);

  at::Tensor plain_;  // undefined once packed
  bool wants_quantized_;
  std::unique_ptr<DirectConv> direct_;
  std::unique_ptr<QuantizedConv> quantized_;
  at::Tensor packed_;  // oneDNN's
  std::optional<at::Tensor> bias_;
  int64_t in_features_, out_features_;
  c10::ScalarType type_;
  bool is_plain_;  // oneDNN does not accept the type on this CPU
};

// The weights of a 4 x 4 transposed convolution, stride 2, padding 1, that equals nearest 2x upsampling
// followed by a 3 x 3 convolution with padding 1: along each axis taps (w0, w1, w2) become (w2, w1 + w2, w0 +
// w1, w0). weight [K, C, 3, 3] -> [C, K, 4, 4].
[[nodiscard]] at::Tensor folded_upsampling(const at::Tensor& weight);

}  // namespace diad
