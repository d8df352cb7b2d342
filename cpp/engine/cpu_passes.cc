#include "cpu_passes.h"

#include <ATen/Context.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/library.h>

#include <algorithm>

#include "cpu_layers.h"
#include "graph_rewriter.h"
#include "group_norm.h"
#include "interruption.h"

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
const c10::Symbol kAdd = c10::Symbol::fromQualString("aten::add");
const c10::Symbol kUnsqueeze = c10::Symbol::fromQualString("aten::unsqueeze");
const c10::Symbol kView = c10::Symbol::fromQualString("aten::view");
const c10::Symbol kUpsample = c10::Symbol::fromQualString("aten::upsample_nearest2d");

at::Tensor run_conv(const at::Tensor& x, const OptionalTensor& residual, const c10::intrusive_ptr<ConvLayer>& layer) {
  check_interruption();
  return layer->run(x, residual);
}

at::Tensor run_linear(const at::Tensor& x, const OptionalTensor& residual, const c10::intrusive_ptr<LinearLayer>& layer) {
  check_interruption();
  return layer->run(x, residual);
}

at::Tensor run_group_norm(const at::Tensor& x, const OptionalTensor& shift, const at::Tensor& weight, const at::Tensor& bias,
                          int64_t groups, double eps, bool silu) {
  check_interruption();
  return group_norm(x, shift, weight, bias, {groups, eps, silu});
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
  CpuRewriter(const std::shared_ptr<Graph>& graph, const CpuOptions& options) : GraphRewriter(graph), options_(options) {}

  CpuRewrites run() {
    if (writes_in_place(graph_->block()) || !at::hasMKLDNN()) return done_;
    // What our layers return lies channels last, which view() may not be able to see in other sizes.
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
    torch::jit::EliminateDeadCode(graph_);
    return done_;
  }

 private:
  [[nodiscard]] bool is_packable(const OptionalTensor& weight, int64_t dimensions) const {
    return weight && weight->dim() == dimensions && weight->scalar_type() == options_.computed_in && weight->device().is_cpu();
  }

  // Strides, paddings or dilations with which sizes stay far from overflowing; others are LibTorch's to refuse.
  static bool are_within(const std::vector<int64_t>& values, int64_t least) {
    constexpr int64_t kMost = 1 << 20;
    return std::all_of(values.begin(), values.end(), [least](int64_t value) { return value >= least && value <= kMost; });
  }

  static bool is_bias_of(const OptionalTensor& bias, const at::Tensor& weight) {
    return !bias || (bias->dim() == 1 && bias->size(0) == weight.size(0) && bias->scalar_type() == weight.scalar_type());
  }

  void rewrite_norm(Node* node) {
    const OptionalTensor weight = constant_tensor(node->input(2)), bias = constant_tensor(node->input(3));
    if (!is_packable(weight, 1) || !is_packable(bias, 1)) return;
    if (node->input(1)->type() != c10::IntType::get() || node->input(4)->type() != c10::FloatType::get()) return;
    const auto [x, shift, silu] = surroundings_of_norm(node);
    replace(
        silu ? silu : node, "diad::group_norm",
        {x, shift ? shift : none(node), node->input(2), node->input(3), node->input(1), node->input(4), constant(node, silu != nullptr)});
    if (silu) silu->destroy();
    node->destroy();
    ++done_.norms;
  }

  // _convolution(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups, ...) or
  // conv2d(x, weight, bias, stride, padding, dilation, groups); upsampling before it, a residual and ReLU after it.
  void rewrite_convolution(Node* node) {
    const bool full = node->kind() == kConvolution;
    const OptionalTensor weight = constant_tensor(node->input(1)), bias = constant_tensor(node->input(2));
    const auto groups = torch::jit::toIValue(node->input(full ? 8 : 6));
    if (!is_packable(weight, 4) || !(bias || is_none(node->input(2))) || !groups || groups->toInt() != 1) return;
    if (full && torch::jit::toIValue(node->input(6)) != c10::IValue(false)) return;
    const auto stride = constant_ints(node->input(3), 2), padding = constant_ints(node->input(4), 2),
               dilation = constant_ints(node->input(5), 2);
    if (!stride || !padding || !dilation || !are_within(*stride, 1) || !are_within(*padding, 0) || !are_within(*dilation, 1)) return;
    if (weight->numel() == 0 || !is_bias_of(bias, *weight)) return;

    ConvLayer::Shape shape{*padding, *stride, *dilation, false, false, options_.runs, options_.quantised};
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
    if (Node* const relu = only_user(last, kRelu)) {
      last = relu;
      shape.relu = true;
    }
    const auto layer = c10::make_intrusive<ConvLayer>(*weight, bias, shape);
    replace(last, "diad::convolution", {x, residual ? residual : none(last), constant(last, layer)});
    retire(node, last);
    ++done_.convolutions;
  }

  static bool folds_upsampling(Value* x, const at::Tensor& weight, const ConvLayer::Shape& shape) {
    Node* const upsample = x->node();
    if (upsample->kind() != kUpsample || x->uses().size() != 1 || weight.size(2) != 3 || weight.size(3) != 3) return false;
    // upsample_nearest2d(x, output_size?, scale_factors?)
    const auto factors = upsample->inputs().size() == 3 ? torch::jit::toIValue(upsample->input(2)) : std::nullopt;
    if (!is_none(upsample->input(1)) || !factors || !factors->isDoubleList()) return false;
    const std::vector<int64_t> ones{1, 1};
    return factors->toDoubleVector() == std::vector<double>{2, 2} && shape.stride == ones && shape.padding == ones &&
           shape.dilation == ones;
  }

  void rewrite_linear(Node* node) {
    const OptionalTensor weight = constant_tensor(node->input(1)), bias = constant_tensor(node->input(2));
    if (!is_packable(weight, 2) || !(bias || is_none(node->input(2))) || weight->numel() == 0 || !is_bias_of(bias, *weight)) return;
    Node* last = node;
    Value* residual = nullptr;
    if (Node* const add = only_user(node, kAdd)) {
      residual = other_summand(add, node->output());
      if (residual) last = add;
    }
    const auto layer = c10::make_intrusive<LinearLayer>(*weight, bias, options_.quantised);
    replace(last, "diad::linear", {node->input(0), residual ? residual : none(last), constant(last, layer)});
    retire(node, last);
    ++done_.linears;
  }

  // Takes the replaced chain out, last first, and with it its weight, so that plain and packed weights do not pile up.
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

  // The node of the chain first -> ... -> last that feeds `last`.
  static Node* only_user_chain(Node* first, const Node* last) {
    Node* node = first;
    while (node->output()->uses().front().user != last) node = node->output()->uses().front().user;
    return node;
  }

  CpuOptions options_;
  CpuRewrites done_;
};

}  // namespace

bool cpu_multiplies(c10::ScalarType type) {
#if defined(__x86_64__) && defined(__GNUC__)
  if (type == at::kBFloat16) return __builtin_cpu_supports("amx-bf16") || __builtin_cpu_supports("avx512bf16");
#endif
  return type == at::kFloat;
}

CpuRewrites optimise_for_cpu(const std::shared_ptr<Graph>& graph, const CpuOptions& options) { return CpuRewriter(graph, options).run(); }

TORCH_LIBRARY(diad, library) {
  library.class_<ConvLayer>("Convolution");
  library.class_<LinearLayer>("Linear");
  library.def("convolution(Tensor x, Tensor? residual, __torch__.torch.classes.diad.Convolution layer) -> Tensor", run_conv);
  library.def("linear(Tensor x, Tensor? residual, __torch__.torch.classes.diad.Linear layer) -> Tensor", run_linear);
  library.def("group_norm(Tensor x, Tensor? shift, Tensor weight, Tensor bias, int groups, float eps, bool silu) -> Tensor",
              run_group_norm);
}

}  // namespace diad
