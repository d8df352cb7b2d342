#include "cpu/packed_layers.h"

#include <ATen/ExpandUtils.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/upsample_nearest2d.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <string_view>

#include "cpu/winograd_heuristic.h"

namespace diad {

namespace {

using Scalars = c10::List<std::optional<at::Scalar>>;
using OptionalTensor = std::optional<at::Tensor>;
using OptionalText = std::optional<std::string_view>;

template <typename Signature>
c10::TypedOperatorHandle<Signature> operator_of(const char* name, const char* overload = "") {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, overload).typed<Signature>();
}

at::Tensor reordered(const at::Tensor& weight, const ConvLayer::Shape& shape, const at::Tensor& x) {
  static const auto reorder =
      operator_of<at::Tensor(const at::Tensor&, c10::IntArrayRef, c10::IntArrayRef, c10::IntArrayRef, int64_t,
                             c10::OptionalArrayRef<int64_t>)>("mkldnn::_reorder_convolution_weight");
  return reorder.call(weight.contiguous(), shape.padding, shape.stride, shape.dilation, 1, x.sizes());
}

// Returns a byte tensor; equal layouts give equal tensors.
at::Tensor layout_of(const at::Tensor& packed) {
  static const auto describe =
      operator_of<at::Tensor(const at::Tensor&)>("mkldnn::_get_mkldnn_serialized_md");
  return describe.call(packed);
}

// Folding adds a third to the weights and saves more than half of the arithmetic: it pays if there are more
// pixels than channels. In bfloat16 the sums of weights would be rounded.
bool folding_pays(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat && x.size(2) * x.size(3) >= x.size(1);
}

at::Tensor reordered_transposed(const at::Tensor& weight) {
  static const auto reorder =
      operator_of<at::Tensor(const at::Tensor&, c10::IntArrayRef, c10::IntArrayRef, c10::IntArrayRef,
                             c10::IntArrayRef, int64_t, c10::OptionalArrayRef<int64_t>)>(
          "mkldnn::_reorder_convolution_transpose_weight");
  return reorder.call(weight.contiguous(), {1, 1}, {0, 0}, {2, 2}, {1, 1}, 1, std::nullopt);
}

at::Tensor convolve(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                    const ConvLayer::Shape& shape, bool relu) {
  static const auto convolution = operator_of<at::Tensor(
      const at::Tensor&, const at::Tensor&, const OptionalTensor&, c10::IntArrayRef, c10::IntArrayRef,
      c10::IntArrayRef, int64_t, std::string_view, Scalars, OptionalText)>("mkldnn::_convolution_pointwise");
  return convolution.call(x, weight, bias, shape.padding, shape.stride, shape.dilation, 1,
                          relu ? "relu" : "none", Scalars(), std::nullopt);
}

at::Tensor convolve_and_add(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight,
                            const OptionalTensor& bias, const ConvLayer::Shape& shape, bool relu) {
  static const auto convolution =
      operator_of<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                             c10::IntArrayRef, c10::IntArrayRef, c10::IntArrayRef, int64_t, std::string_view,
                             std::optional<at::Scalar>, OptionalText, Scalars, OptionalText)>(
          "mkldnn::_convolution_pointwise", "binary");
  return convolution.call(x, residual, weight, bias, shape.padding, shape.stride, shape.dilation, 1, "add",
                          std::nullopt, relu ? OptionalText("relu") : std::nullopt, Scalars(), std::nullopt);
}

at::Tensor convolve_upsampled(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias) {
  static const auto convolution =
      operator_of<at::Tensor(const at::Tensor&, const at::Tensor&, const OptionalTensor&, c10::IntArrayRef,
                             c10::IntArrayRef, c10::IntArrayRef, c10::IntArrayRef, int64_t, std::string_view,
                             Scalars, OptionalText)>("mkldnn::_convolution_transpose_pointwise");
  const int64_t padding[] = {1, 1}, output_padding[] = {0, 0}, stride[] = {2, 2}, dilation[] = {1, 1};
  return convolution.call(x, weight, bias, padding, output_padding, stride, dilation, 1, "none", Scalars(),
                          std::nullopt);
}

}  // namespace

at::Tensor folded_upsampling(const at::Tensor& weight) {
  const at::Tensor w = weight.to(at::kDouble).transpose(0, 1);  // [C, K, 3, 3]
  const auto fold = [](const at::Tensor& taps, int64_t axis) {
    const auto tap = [&](int64_t i) { return taps.select(axis, i); };
    return at::stack({tap(2), tap(1) + tap(2), tap(0) + tap(1), tap(0)}, axis);
  };
  return fold(fold(w, 2), 3).to(weight.scalar_type()).contiguous();
}

ConvLayer::ConvLayer(at::Tensor weight, std::optional<at::Tensor> bias, Shape shape,
                     const CpuFeatures& features)
    : plain_(std::move(weight)),
      bias_(std::move(bias)),
      shape_(std::move(shape)),
      type_(plain_.scalar_type()),
      is_plain_(!onednn_accepts(type_, features)) {
  for (size_t i = 0; i < size_.size(); ++i) size_[i] = plain_.size(static_cast<int64_t>(i));
  if (bias_) bias_ = bias_->contiguous();  // oneDNN assumes it is contiguous
}

const at::Tensor& ConvLayer::packed_for(const at::Tensor& x) {
  const auto [found, is_new] = by_size_.try_emplace(x.sizes().vec(), packed_.size());
  if (!is_new) return packed_[found->second].weight;
  try {
    const at::Tensor plain = plain_.defined() ? plain_ : packed_.front().weight.to_dense();
    const at::Tensor weight = reordered(plain, shape_, x), layout = layout_of(weight);
    const auto same = std::find_if(packed_.begin(), packed_.end(),
                                   [&](const Packed& known) { return known.layout.equal(layout); });
    found->second = static_cast<size_t>(same - packed_.begin());
    if (same == packed_.end()) packed_.push_back({weight, layout});
    plain_.reset();
  } catch (...) {
    by_size_.erase(found);
    throw;
  }
  return packed_[found->second].weight;
}

std::array<int64_t, 4> ConvLayer::output_size(const at::Tensor& x, int64_t times) const {
  std::array<int64_t, 4> size{x.size(0), size_[0], 0, 0};
  for (size_t i = 0; i < 2; ++i) {
    const int64_t side = x.size(static_cast<int64_t>(i) + 2) * times;
    size[i + 2] =
        (side + 2 * shape_.padding[i] - shape_.dilation[i] * (size_[i + 2] - 1) - 1) / shape_.stride[i] + 1;
  }
  return size;
}

const char* ConvLayer::kernel() const {
  if (quantized_) return "int8";
  if (winograd_) return winograd_->tile() == 4 ? "Winograd 4 x 4" : "Winograd 2 x 2";
  if (direct_) return "direct";
  if (is_plain_) return "LibTorch";
  return folded_.defined() ? "oneDNN, folded" : "oneDNN";
}

// Sets chosen_ only after packing succeeded: after out-of-memory the next call tries again.
void ConvLayer::choose_for(const at::Tensor& x) {
  if (plain_.scalar_type() == at::kFloat) pack_for(x);
  chosen_ = true;
}

void ConvLayer::pack_for(const at::Tensor& x) {
  const auto all = [](const std::vector<int64_t>& pair, int64_t value) {
    return pair == std::vector<int64_t>{value, value};
  };
  const std::array<int64_t, 4> size = output_size(x);
  const int64_t pixels = size[2] * size[3];
  // If the padding reaches the output size, some outputs read only padding. LibTorch handles these before
  // memory is allocated for the padding.
  const bool bordered = shape_.padding[0] < size_[2] && shape_.padding[0] < size_[3];
  const bool square = shape_.stride[0] == shape_.stride[1] && shape_.padding[0] == shape_.padding[1] &&
                      all(shape_.dilation, 1) && bordered;
  const DirectConv::Shape shape{shape_.stride[0], shape_.padding[0], shape_.upsampled};
  if (shape_.quantized && square && QuantizedConv::takes(plain_)) {
    quantized_ = std::make_unique<QuantizedConv>(plain_, bias_, shape);
    plain_.reset();
    return;
  }
  if (all(shape_.stride, 1) && all(shape_.padding, 1) && all(shape_.dilation, 1) &&
      WinogradConv::available(plain_)) {
    const auto [tile, stored] = choose_winograd(pixels, size_[0] * size_[1], shape_.runs);
    if (tile > 0)
      winograd_ =
          std::make_unique<WinogradConv>(plain_, bias_, WinogradConv::Shape{tile, shape_.upsampled, stored});
  }
  if (!winograd_ && DirectConv::available() && square) {
    direct_ = std::make_unique<DirectConv>(plain_, bias_, shape);
  }
  if (winograd_ || direct_) plain_.reset();
}

void ConvLayer::check(const at::Tensor& x) const {
  TORCH_CHECK(x.dim() == 4 && x.size(1) == size_[1], "Expected [N, ", size_[1],
              ", H, W] for a convolution but received ", x.sizes());
  TORCH_CHECK(x.scalar_type() == type_, "Expected ", type_, " for a convolution but received ",
              x.scalar_type());
  for (size_t i = 0; i < 2; ++i) {
    const int64_t side = x.size(static_cast<int64_t>(i) + 2) * (shape_.upsampled ? 2 : 1);
    TORCH_CHECK(side + 2 * shape_.padding[i] > shape_.dilation[i] * (size_[i + 2] - 1),
                "Expected an image larger than the kernel of a convolution but received ", x.sizes());
  }
}

at::Tensor ConvLayer::run(const at::Tensor& x, const std::optional<at::Tensor>& residual) {
  check(x);
  if (!residual ||
      (residual->scalar_type() == type_ && at::is_expandable_to(residual->sizes(), output_size(x)))) {
    return computed(x, residual, shape_.relu);
  }
  const at::Tensor y = computed(x, std::nullopt, false) + *residual;
  return shape_.relu ? at::clamp(y, 0, shape_.upper) : y;
}

at::Tensor ConvLayer::computed(const at::Tensor& x, const std::optional<at::Tensor>& residual, bool relu) {
  if (!chosen_) choose_for(x);
  if (relu && !direct_ && std::isfinite(shape_.upper))
    return at::clamp(activated(x, residual, false), 0, shape_.upper);
  return activated(x, residual, relu);
}

at::Tensor ConvLayer::activated(const at::Tensor& x, const std::optional<at::Tensor>& residual, bool relu) {
  if (quantized_) return quantized_->run(x, residual, relu);
  if (winograd_) return winograd_->run(x, residual, relu);
  if (direct_) return direct_->run(x, residual, relu, shape_.upper);
  if (is_plain_) return convolved_plainly(x, residual, relu);
  if (!shape_.upsampled) return convolved(x, residual, relu);
  if (!folding_pays(x)) {
    const at::Tensor enlarged =
        at::upsample_nearest2d(x.contiguous(at::MemoryFormat::ChannelsLast), {2 * x.size(2), 2 * x.size(3)});
    return convolved(enlarged, residual, relu);
  }
  if (!folded_.defined()) {
    folded_ = reordered_transposed(
        folded_upsampling(plain_.defined() ? plain_ : packed_.front().weight.to_dense()));
  }
  at::Tensor y = convolve_upsampled(x, folded_, bias_);
  if (residual) y = y + *residual;
  return relu ? y.relu() : y;
}

at::Tensor ConvLayer::convolved(const at::Tensor& x, const std::optional<at::Tensor>& residual, bool relu) {
  const at::Tensor& weight = packed_for(x);
  if (!residual) return convolve(x, weight, bias_, shape_, relu);
  if (residual->sizes() != c10::IntArrayRef(output_size(x, 1))) {  // broadcast
    const at::Tensor y = convolve(x, weight, bias_, shape_, false) + *residual;
    return relu ? y.relu() : y;
  }
  return convolve_and_add(x, residual->contiguous(at::MemoryFormat::ChannelsLast), weight, bias_, shape_,
                          relu);
}

at::Tensor ConvLayer::convolved_plainly(const at::Tensor& x, const std::optional<at::Tensor>& residual,
                                        bool relu) const {
  const at::Tensor input = shape_.upsampled ? at::upsample_nearest2d(x, {2 * x.size(2), 2 * x.size(3)}) : x;
  at::Tensor y = at::conv2d(input, plain_, bias_, shape_.stride, shape_.padding, shape_.dilation);
  if (residual) y = y + *residual;
  return (relu ? y.relu() : y).contiguous(at::MemoryFormat::ChannelsLast);
}

LinearLayer::LinearLayer(const at::Tensor& weight, std::optional<at::Tensor> bias, bool quantized,
                         const CpuFeatures& features)
    : plain_(weight),
      wants_quantized_(quantized),
      bias_(std::move(bias)),
      in_features_(weight.size(1)),
      out_features_(weight.size(0)),
      type_(weight.scalar_type()),
      is_plain_(!onednn_accepts(type_, features)) {
  if (bias_) bias_ = bias_->contiguous();  // oneDNN assumes it is contiguous
}

const char* LinearLayer::kernel() const {
  if (quantized_) return "int8";
  if (direct_) return "direct";
  return is_plain_ ? "LibTorch" : "oneDNN";
}

void LinearLayer::pack() {
  const at::Tensor kernel = plain_.unsqueeze(2).unsqueeze(3);
  if (wants_quantized_ && QuantizedConv::takes(kernel)) {
    quantized_ = std::make_unique<QuantizedConv>(kernel, bias_, QuantizedConv::Shape{});
  } else if (plain_.scalar_type() == at::kFloat && DirectConv::available()) {
    direct_ = std::make_unique<DirectConv>(kernel, bias_, DirectConv::Shape{});
  } else {
    static const auto reorder =
        operator_of<at::Tensor(const at::Tensor&, std::optional<int64_t>)>("mkldnn::_reorder_linear_weight");
    packed_ = reorder.call(plain_.contiguous(), std::nullopt);
  }
  plain_.reset();
}

at::Tensor LinearLayer::run(const at::Tensor& x, const std::optional<at::Tensor>& residual) {
  TORCH_CHECK(x.dim() > 0 && x.size(-1) == in_features_, "Expected [..., ", in_features_,
              "] for a linear layer but received ", x.sizes());
  TORCH_CHECK(x.scalar_type() == type_, "Expected ", type_, " for a linear layer but received ",
              x.scalar_type());
  if (!residual) return computed(x, residual);
  std::vector<int64_t> size = x.sizes().vec();
  size.back() = out_features_;
  return residual->scalar_type() == type_ && residual->sizes() == c10::IntArrayRef(size)
             ? computed(x, residual)
             : computed(x, std::nullopt) + *residual;
}

at::Tensor LinearLayer::computed(const at::Tensor& x, const std::optional<at::Tensor>& residual) {
  if (is_plain_) {
    const at::Tensor y = at::linear(x, plain_, bias_);
    return residual ? y + *residual : y;
  }
  if (plain_.defined()) pack();
  if (quantized_) return quantized_->multiply(x, residual);
  if (direct_) return direct_->multiply(x, residual);
  static const auto linear =
      operator_of<at::Tensor(const at::Tensor&, const at::Tensor&, const OptionalTensor&, std::string_view,
                             Scalars, OptionalText)>("mkldnn::_linear_pointwise");
  static const auto linear_and_add =
      operator_of<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                             std::string_view)>("mkldnn::_linear_pointwise", "binary");
  if (residual) return linear_and_add.call(x.contiguous(), residual->contiguous(), packed_, bias_, "add");
  return linear.call(x.contiguous(), packed_, bias_, "none", Scalars(), std::nullopt);
}

}  // namespace diad
