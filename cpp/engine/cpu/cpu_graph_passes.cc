#include "cpu/cpu_graph_passes.h"

#include <ATen/Context.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>

#include "cpu/depthwise_conv.h"
#include "cpu/group_norm.h"
#include "cpu/packed_layers.h"
#include "cpu/transformer_ops.h"
#include "graph/graph_rewriter.h"
#include "support/cancellation.h"

namespace diad {

namespace {

using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;

const c10::Symbol kConvolution = c10::Symbol::fromQualString("aten::_convolution");
const c10::Symbol kConv2d = c10::Symbol::fromQualString("aten::conv2d");
const c10::Symbol kLinear = c10::Symbol::fromQualString("aten::linear");
const c10::Symbol kGroupNorm = c10::Symbol::fromQualString("aten::group_norm");
const c10::Symbol kRelu = c10::Symbol::fromQualString("aten::relu");
const c10::Symbol kRelu6 = c10::Symbol::fromQualString("aten::relu6");
const c10::Symbol kPad = c10::Symbol::fromQualString("aten::pad");
const c10::Symbol kAdd = c10::Symbol::fromQualString("aten::add");
const c10::Symbol kUnsqueeze = c10::Symbol::fromQualString("aten::unsqueeze");
const c10::Symbol kView = c10::Symbol::fromQualString("aten::view");
const c10::Symbol kInstanceNorm = c10::Symbol::fromQualString("aten::instance_norm");
const c10::Symbol kLayerNorm = c10::Symbol::fromQualString("aten::layer_norm");
const c10::Symbol kAttention = c10::Symbol::fromQualString("aten::scaled_dot_product_attention");
const c10::Symbol kGelu = c10::Symbol::fromQualString("aten::gelu");
const c10::Symbol kMul = c10::Symbol::fromQualString("aten::mul");
const c10::Symbol kChunk = c10::Symbol::fromQualString("aten::chunk");
const c10::Symbol kSilu = c10::Symbol::fromQualString("aten::silu");
const c10::Symbol kUpsample = c10::Symbol::fromQualString("aten::upsample_nearest2d");

at::Tensor run_conv(const at::Tensor& x, const OptionalTensor& residual,
                    const c10::intrusive_ptr<ConvLayer>& layer) {
  check_cancelled();
  return layer->run(x, residual);
}

at::Tensor run_linear(const at::Tensor& x, const OptionalTensor& residual,
                      const c10::intrusive_ptr<LinearLayer>& layer) {
  check_cancelled();
  return layer->run(x, residual);
}

at::Tensor run_depthwise(const at::Tensor& x, const c10::intrusive_ptr<DepthwiseLayer>& layer) {
  check_cancelled();
  return layer->run(x);
}

at::Tensor run_group_norm(const at::Tensor& x, const OptionalTensor& shift, const at::Tensor& weight,
                          const at::Tensor& bias, int64_t groups, double eps, bool silu) {
  check_cancelled();
  return group_norm(x, shift, weight, bias, {groups, eps, silu});
}

at::Tensor run_instance_norm(const at::Tensor& x, double eps, bool silu) {
  check_cancelled();
  return instance_norm(x, eps, silu);
}

at::Tensor run_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  check_cancelled();
  return attention(q, k, v);
}

at::Tensor run_layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps) {
  check_cancelled();
  return layer_norm(x, weight, bias, eps);
}

at::Tensor run_geglu(const at::Tensor& x) {
  check_cancelled();
  return geglu(x);
}

std::optional<std::vector<int64_t>> constant_ints(const Value* value, size_t count) {
  const auto found = torch::jit::toIValue(value);
  if (!found || !found->isIntList()) return std::nullopt;
  std::vector<int64_t> ints = found->toIntVector();
  if (ints.size() == 1) ints.resize(count, ints.front());
  if (ints.size() != count) return std::nullopt;
  return ints;
}

class CpuRewriter final : GraphRewriter {
 public:
  CpuRewriter(const std::shared_ptr<Graph>& graph, const CpuOptions& options)
      : GraphRewriter(graph), options_(options) {}

  CpuRewrites run() {
    if (writes_in_place(graph_->block()) || !at::hasMKLDNN()) return done_;
    // Packed layers return channels-last tensors, which view() cannot always reshape.
    visit(graph_->block(), kView, [this](Node* node) {
      if (node->input(1)->type()->kind() != c10::TypeKind::ListType) return;  // view(dtype)
      replace(node, "aten::reshape", {node->input(0), node->input(1)});
      node->destroy();
    });
    visit(graph_->block(), kGroupNorm, [this](Node* node) { rewrite_norm(node); });
    for (const c10::Symbol kind : {kConvolution, kConv2d}) {
      visit(graph_->block(), kind, [this](Node* node) { rewrite_convolution(node); });
    }
    visit(graph_->block(), kLinear, [this](Node* node) { rewrite_linear(node); });
    if (options_.computed_in == at::kFloat) {
      visit(graph_->block(), kInstanceNorm, [this](Node* node) { rewrite_instance_norm(node); });
      visit(graph_->block(), kLayerNorm, [this](Node* node) { rewrite_layer_norm(node); });
      visit(graph_->block(), kAttention, [this](Node* node) { rewrite_attention(node); });
      visit(graph_->block(), kGelu, [this](Node* node) { rewrite_gate(node); });
    }
    torch::jit::EliminateDeadCode(graph_);
    return done_;
  }

 private:
  [[nodiscard]] bool is_packable(const OptionalTensor& weight, int64_t dimensions) const {
    return weight && weight->dim() == dimensions && weight->scalar_type() == options_.computed_in &&
           weight->device().is_cpu();
  }

  // Checks strides, paddings or dilations, so that sizes cannot overflow. LibTorch handles others and reports
  // errors.
  static bool are_within(const std::vector<int64_t>& values, int64_t least) {
    constexpr int64_t kMost = 1 << 20;
    return std::all_of(values.begin(), values.end(),
                       [least](int64_t value) { return value >= least && value <= kMost; });
  }

  static bool is_bias_of(const OptionalTensor& bias, const at::Tensor& weight) {
    return !bias || (bias->dim() == 1 && bias->size(0) == weight.size(0) &&
                     bias->scalar_type() == weight.scalar_type());
  }

  void rewrite_norm(Node* node) {
    const OptionalTensor weight = constant_tensor(node->input(2)), bias = constant_tensor(node->input(3));
    if (!is_packable(weight, 1) || !is_packable(bias, 1)) return;
    if (node->input(1)->type() != c10::IntType::get() || node->input(4)->type() != c10::FloatType::get())
      return;
    const auto [x, shift, silu] = surroundings_of_norm(node);
    replace(silu ? silu : node, "diad::group_norm",
            {x, shift ? shift : none(node), node->input(2), node->input(3), node->input(1), node->input(4),
             constant(node, silu != nullptr)});
    if (silu) silu->destroy();
    node->destroy();
    ++done_.norms;
  }

  // Fuses _convolution(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups, ...)
  // or conv2d(x, weight, bias, stride, padding, dilation, groups) with upsampling before it and a residual
  // and ReLU after it.
  void rewrite_convolution(Node* node) {
    const bool full = node->kind() == kConvolution;
    const OptionalTensor weight = constant_tensor(node->input(1)), bias = constant_tensor(node->input(2));
    const auto groups = torch::jit::toIValue(node->input(full ? 8 : 6));
    if (!is_packable(weight, 4) || !(bias || is_none(node->input(2))) || !groups) return;
    if (full && torch::jit::toIValue(node->input(6)) != c10::IValue(false)) return;
    const auto stride = constant_ints(node->input(3), 2), padding = constant_ints(node->input(4), 2),
               dilation = constant_ints(node->input(5), 2);
    if (!stride || !padding || !dilation || !are_within(*stride, 1) || !are_within(*padding, 0) ||
        !are_within(*dilation, 1))
      return;
    if (weight->numel() == 0 || !is_bias_of(bias, *weight)) return;
    if (groups->toInt() != 1) {
      if (groups->toInt() == weight->size(0) && weight->size(1) == 1 &&
          *dilation == std::vector<int64_t>{1, 1}) {
        rewrite_depthwise(node, *weight, bias, *stride, *padding);
      }
      return;
    }

    ConvLayer::Shape shape{.padding = *padding,
                           .stride = *stride,
                           .dilation = *dilation,
                           .runs = options_.runs,
                           .quantized = options_.quantized};
    Value* x = node->input(0);
    if (folds_upsampling(x, *weight, shape)) {
      x = x->node()->input(0);
      shape.upsampled = true;
      ++done_.upsampled_convolutions;
    }
    Node* last = node;
    Value* residual = nullptr;
    if (Node* const add = only_user(node, kAdd)) {
      residual = other_summand(add, node->output());
      if (residual && residual->node()->kind() == kUnsqueeze) residual = nullptr;
      if (residual) last = add;
    }
    if (const auto activation = activation_after(last)) {
      last = activation->node;
      shape.relu = true;
      shape.upper = activation->upper;
    }
    const auto layer = c10::make_intrusive<ConvLayer>(*weight, bias, shape);
    replace(last, "diad::convolution", {x, residual ? residual : none(last), constant(last, layer)});
    retire(node, last);
    ++done_.convolutions;
  }

  // A ReLU or ReLU6.
  struct Activation {
    Node* node;
    float upper;
  };

  static std::optional<Activation> activation_after(Node* node) {
    if (Node* const relu = only_user(node, kRelu))
      return Activation{relu, std::numeric_limits<float>::infinity()};
    if (Node* const relu6 = only_user(node, kRelu6)) return Activation{relu6, 6.0F};
    return std::nullopt;
  }

  // Returns the zero padding if x is the result of pad(x, [left, right, top, bottom], "constant", value).
  static std::optional<std::vector<int64_t>> zeros_around(Value* x) {
    Node* const pad = x->node();
    if (pad->kind() != kPad || x->uses().size() != 1) return std::nullopt;
    const auto mode = torch::jit::toIValue(pad->input(2)), value = torch::jit::toIValue(pad->input(3));
    if (!mode || !mode->isString() || mode->toStringRef() != "constant" || !value) return std::nullopt;
    if (!value->isNone() && *value != c10::IValue(0.0)) return std::nullopt;
    return constant_ints(pad->input(1), 4);
  }

  // Fuses a depthwise convolution with the padding before it and the activation after it.
  void rewrite_depthwise(Node* node, const at::Tensor& weight, const OptionalTensor& bias,
                         const std::vector<int64_t>& stride, const std::vector<int64_t>& padding) {
    const int64_t kernel = weight.size(2);
    if (kernel != weight.size(3) || stride[0] != stride[1] || padding[0] != padding[1] ||
        options_.computed_in != at::kFloat)
      return;
    DepthwiseLayer::Shape shape{stride[0], padding[0], padding[0]};
    Value* x = node->input(0);
    if (const auto border = zeros_around(x);
        border && (*border)[0] == (*border)[2] && (*border)[1] == (*border)[3]) {
      shape.before += (*border)[0];
      shape.after += (*border)[1];
      if (std::min((*border)[0], (*border)[1]) < 0) return;
      x = x->node()->input(0);
    }
    if (std::max(shape.before, shape.after) >= kernel)
      return;  // LibTorch handles outputs that read only padding
    Node* last = node;
    if (const auto activation = activation_after(node)) {
      last = activation->node;
      shape.low = 0;
      shape.high = activation->upper;
    }
    replace(last, "diad::depthwise_convolution",
            {x, constant(last, c10::make_intrusive<DepthwiseLayer>(weight, bias, shape))});
    retire(node, last);
    ++done_.depthwise_convolutions;
  }

  static bool folds_upsampling(Value* x, const at::Tensor& weight, const ConvLayer::Shape& shape) {
    Node* const upsample = x->node();
    if (upsample->kind() != kUpsample || x->uses().size() != 1 || weight.size(2) != 3 || weight.size(3) != 3)
      return false;
    // upsample_nearest2d(x, output_size?, scale_factors?)
    const auto factors =
        upsample->inputs().size() == 3 ? torch::jit::toIValue(upsample->input(2)) : std::nullopt;
    if (!is_none(upsample->input(1)) || !factors || !factors->isDoubleList()) return false;
    const std::vector<int64_t> ones{1, 1};
    return factors->toDoubleVector() == std::vector<double>{2, 2} && shape.stride == ones &&
           shape.padding == ones && shape.dilation == ones;
  }

  void rewrite_linear(Node* node) {
    const OptionalTensor weight = constant_tensor(node->input(1)), bias = constant_tensor(node->input(2));
    if (!is_packable(weight, 2) || !(bias || is_none(node->input(2))) || weight->numel() == 0 ||
        !is_bias_of(bias, *weight))
      return;
    Node* last = node;
    Value* residual = nullptr;
    if (Node* const add = only_user(node, kAdd)) {
      residual = other_summand(add, node->output());
      if (residual) last = add;
    }
    const auto layer = c10::make_intrusive<LinearLayer>(*weight, bias, options_.quantized);
    replace(last, "diad::linear", {node->input(0), residual ? residual : none(last), constant(last, layer)});
    retire(node, last);
    ++done_.linears;
  }

  // Fuses instance_norm(x, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, cudnn)
  // without weights with SiLU after it.
  void rewrite_instance_norm(Node* node) {
    for (const size_t i : {1, 2, 3, 4}) {
      if (!is_none(node->input(i))) return;
    }
    if (torch::jit::toIValue(node->input(5)) != c10::IValue(true) ||
        node->input(7)->type() != c10::FloatType::get())
      return;
    Node* const silu = only_user(node, kSilu);
    replace(silu ? silu : node, "diad::instance_norm",
            {node->input(0), node->input(7), constant(node, silu != nullptr)});
    if (silu) silu->destroy();
    node->destroy();
    ++done_.instance_norms;
  }

  // Replaces layer_norm(x, normalized_shape, weight, bias, eps, cudnn) over the last axis.
  void rewrite_layer_norm(Node* node) {
    const OptionalTensor weight = constant_tensor(node->input(2)), bias = constant_tensor(node->input(3));
    if (!is_packable(weight, 1) || !is_packable(bias, 1) || weight->numel() != bias->numel()) return;
    const auto shape = torch::jit::toIValue(node->input(1));
    if (!shape || !shape->isIntList() || shape->toIntVector() != weight->sizes() ||
        node->input(4)->type() != c10::FloatType::get())
      return;
    replace(node, "diad::layer_norm",
            {node->input(0), constant(node, weight->contiguous()), constant(node, bias->contiguous()),
             node->input(4)});
    node->destroy();
    ++done_.layer_norms;
  }

  // Replaces scaled_dot_product_attention(q, k, v, mask, dropout, is_causal, scale, enable_gqa) with default
  // arguments.
  void rewrite_attention(Node* node) {
    if (node->inputs().size() != 8 || !is_none(node->input(3)) || !is_none(node->input(6))) return;
    const auto is = [&](size_t input, const c10::IValue& value) {
      return torch::jit::toIValue(node->input(input)) == value;
    };
    if (!is(4, 0.0) || !is(5, false) || !is(7, false)) return;
    replace(node, "diad::attention", {node->input(0), node->input(1), node->input(2)});
    node->destroy();
    ++done_.attentions;
  }

  // Fuses value * gelu(gate) of the two halves returned by chunk(x, 2, -1).
  void rewrite_gate(Node* node) {
    const auto approximation = torch::jit::toIValue(node->input(1));
    Node* const mul = only_user(node, kMul);
    Node* const halves = node->input(0)->node();
    if (!approximation || !approximation->isString() || approximation->toStringRef() != "none" ||
        mul == nullptr)
      return;
    if (halves->kind() != c10::prim::ListUnpack || halves->outputs().size() != 2 ||
        node->input(0) != halves->output(1))
      return;
    const Node* const chunk = halves->input()->node();
    if (chunk->kind() != kChunk || torch::jit::toIValue(chunk->input(1)) != c10::IValue(2)) return;
    if (torch::jit::toIValue(chunk->input(2)) != c10::IValue(-1)) return;
    if (mul->input(0) != halves->output(0) && mul->input(1) != halves->output(0)) return;
    replace(mul, "diad::geglu", {chunk->input(0)});
    mul->destroy();
    node->destroy();
    ++done_.gates;
  }

  // Removes the replaced chain, last node first, together with its weight, so that original and packed
  // weights are not held at the same time.
  void retire(Node* first, Node* last) {
    while (last != first) {
      Node* const before = only_user_chain(first, last);
      last->destroy();
      last = before;
    }
    Value* const weight = first->input(1);
    first->destroy();
    if (weight->uses().empty() && weight->node()->kind() == c10::prim::Constant) weight->node()->destroy();
  }

  // Returns the node of the chain first -> ... -> last that feeds `last`.
  static Node* only_user_chain(Node* first, const Node* last) {
    Node* node = first;
    while (node->output()->uses().front().user != last) node = node->output()->uses().front().user;
    return node;
  }

  CpuOptions options_;
  CpuRewrites done_;
};

}  // namespace

CpuRewrites optimize_for_cpu(const std::shared_ptr<Graph>& graph, const CpuOptions& options) {
  return CpuRewriter(graph, options).run();
}

TORCH_LIBRARY(diad, library) {
  library.class_<ConvLayer>("Convolution");
  library.class_<LinearLayer>("Linear");
  library.class_<DepthwiseLayer>("Depthwise");
  library.def(
      "convolution(Tensor x, Tensor? residual, __torch__.torch.classes.diad.Convolution layer) -> Tensor",
      run_conv);
  library.def("depthwise_convolution(Tensor x, __torch__.torch.classes.diad.Depthwise layer) -> Tensor",
              run_depthwise);
  library.def("linear(Tensor x, Tensor? residual, __torch__.torch.classes.diad.Linear layer) -> Tensor",
              run_linear);
  library.def(
      "group_norm(Tensor x, Tensor? shift, Tensor weight, Tensor bias, int groups, float eps, bool silu) -> "
      "Tensor",
      run_group_norm);
  library.def("instance_norm(Tensor x, float eps, bool silu) -> Tensor", run_instance_norm);
  library.def("layer_norm(Tensor x, Tensor weight, Tensor bias, float eps) -> Tensor", run_layer_norm);
  library.def("attention(Tensor q, Tensor k, Tensor v) -> Tensor", run_attention);
  library.def("geglu(Tensor x) -> Tensor", run_geglu);
}

}  // namespace diad
