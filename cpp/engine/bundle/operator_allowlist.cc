#include "bundle/operator_allowlist.h"

#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/ir/ir.h>

#include <algorithm>
#include <array>
#include <unordered_set>

#include "support/cancellation.h"
#include "support/engine_error.h"

namespace diad {

namespace {

// Sorted. Everything that touches files, Python, other processes or the terminal is excluded, and also: loops
// (all programs terminate), objects and attribute writes, views with raw strides (as_strided, set_, resize_),
// uninitialized memory (empty), random numbers (results must be reproducible) and kernels without bounds
// checks.
constexpr auto kOperators = std::to_array<std::string_view>({
    "aten::Bool",
    "aten::Float",
    "aten::FloatImplicit",
    "aten::Int",
    "aten::IntImplicit",
    "aten::ScalarImplicit",
    "aten::__and__",
    "aten::__contains__",
    "aten::__getitem__",
    "aten::__is__",
    "aten::__isnot__",
    "aten::__not__",
    "aten::__or__",
    "aten::_convolution",
    "aten::abs",
    "aten::adaptive_avg_pool2d",
    "aten::add",
    "aten::add_",
    "aten::addmm",
    "aten::amax",
    "aten::amin",
    "aten::append",
    "aten::arange",
    "aten::argmax",
    "aten::argmin",
    "aten::avg_pool2d",
    "aten::baddbmm",
    "aten::batch_norm",
    "aten::bmm",
    "aten::cat",
    "aten::ceil",
    "aten::celu",
    "aten::chunk",
    "aten::clamp",
    "aten::clamp_max",
    "aten::clamp_min",
    "aten::clone",
    "aten::concat",
    "aten::constant_pad_nd",
    "aten::contiguous",
    "aten::conv1d",
    "aten::conv2d",
    "aten::conv_transpose2d",
    "aten::cos",
    "aten::cosine_similarity",
    "aten::cumsum",
    "aten::detach",
    "aten::device",
    "aten::dim",
    "aten::div",
    "aten::div_",
    "aten::dropout",
    "aten::einsum",
    "aten::elu",
    "aten::embedding",
    "aten::eq",
    "aten::erf",
    "aten::exp",
    "aten::expand",
    "aten::expand_as",
    "aten::flatten",
    "aten::flip",
    "aten::floor",
    "aten::floor_divide",
    "aten::floordiv",
    "aten::full",
    "aten::full_like",
    "aten::gather",
    "aten::ge",
    "aten::gelu",
    "aten::glu",
    "aten::group_norm",
    "aten::gt",
    "aten::hardsigmoid",
    "aten::hardswish",
    "aten::hardtanh",
    "aten::index_select",
    "aten::instance_norm",
    "aten::layer_norm",
    "aten::le",
    "aten::leaky_relu",
    "aten::leaky_relu_",
    "aten::len",
    "aten::lerp",
    "aten::linalg_vector_norm",
    "aten::linear",
    "aten::log",
    "aten::log_softmax",
    "aten::lt",
    "aten::masked_fill",
    "aten::matmul",
    "aten::max",
    "aten::max_pool2d",
    "aten::maximum",
    "aten::mean",
    "aten::min",
    "aten::minimum",
    "aten::mish",
    "aten::mm",
    "aten::movedim",
    "aten::mul",
    "aten::mul_",
    "aten::narrow",
    "aten::ne",
    "aten::neg",
    "aten::norm",
    "aten::ones",
    "aten::ones_like",
    "aten::pad",
    "aten::permute",
    "aten::pixel_shuffle",
    "aten::pixel_unshuffle",
    "aten::pow",
    "aten::prelu",
    "aten::reciprocal",
    "aten::reflection_pad2d",
    "aten::relu",
    "aten::relu6",
    "aten::relu_",
    "aten::remainder",
    "aten::repeat",
    "aten::repeat_interleave",
    "aten::replication_pad2d",
    "aten::reshape",
    "aten::rms_norm",
    "aten::round",
    "aten::rsqrt",
    "aten::rsub",
    "aten::scaled_dot_product_attention",
    "aten::select",
    "aten::selu",
    "aten::sigmoid",
    "aten::sign",
    "aten::silu",
    "aten::silu_",
    "aten::sin",
    "aten::size",
    "aten::slice",
    "aten::softmax",
    "aten::softplus",
    "aten::split",
    "aten::split_with_sizes",
    "aten::sqrt",
    "aten::square",
    "aten::squeeze",
    "aten::stack",
    "aten::sub",
    "aten::sub_",
    "aten::sum",
    "aten::t",
    "aten::tanh",
    "aten::tensor",
    "aten::to",
    "aten::transpose",
    "aten::tril",
    "aten::triu",
    "aten::type_as",
    "aten::unbind",
    "aten::unflatten",
    "aten::unsqueeze",
    "aten::upsample_bicubic2d",
    "aten::upsample_bilinear2d",
    "aten::upsample_nearest2d",
    "aten::var",
    "aten::var_mean",
    "aten::view",
    "aten::view_as",
    "aten::where",
    "aten::zeros",
    "aten::zeros_like",
    "prim::CallFunction",
    "prim::CallMethod",
    "prim::Constant",
    "prim::GetAttr",
    "prim::If",
    "prim::ListConstruct",
    "prim::ListUnpack",
    "prim::NumToTensor",
    "prim::Param",
    "prim::RaiseException",
    "prim::Return",
    "prim::TupleConstruct",
    "prim::TupleIndex",
    "prim::TupleUnpack",
    "prim::Uninitialized",
    "prim::device",
    "prim::dtype",
    "prim::max",
    "prim::min",
    "prim::unchecked_cast",
});
static_assert(std::ranges::is_sorted(kOperators));

using torch::jit::Block;
using torch::jit::Function;
using torch::jit::Node;

class Inspection {
 public:
  explicit Inspection(const std::string& file) : file_(file) {}

  void function(const Function& function) {
    if (!seen_.insert(&function).second) return;
    check_cancelled();  // the first access to its graph compiles a function
    name_ = function.name();
    if (!function.isGraphFunction()) refuse("which is not a TorchScript function");
    block(*torch::jit::toGraphFunction(function).graph()->block());
  }

  void class_methods(const c10::ClassType& type) {
    for (const Function* method : type.methods()) function(*method);
    for (const Function* hook : type.getForwardHooks()) function(*hook);
    for (const Function* hook : type.getForwardPreHooks()) function(*hook);
  }

 private:
  [[noreturn]] void refuse(const std::string& why) const {
    throw EngineError(code::kBundleInvalid,
                      file_ + ": the function " + name_ + " " + why +
                          "; a bundle's modules can only compute with tensors (see docs/design/security.md)");
  }

  void block(const Block& block) const {
    for (const Node* node : block.nodes()) {
      check(*node);
      for (const Block* nested : node->blocks()) this->block(*nested);
    }
  }

  void check(const Node& node) const {
    const std::string name = node.kind().toQualString();
    if (!is_allowed_operator(name)) refuse("uses the operator " + name);
    if (const auto* schema = node.maybeSchema();
        schema != nullptr && schema->overload_name().ends_with("out")) {
      refuse("uses the operator " + name + "." + schema->overload_name());
    }
    // A call through an interface selects the method at run time.
    if (node.kind() == c10::prim::CallMethod && !node.input(0)->type()->cast<c10::ClassType>()) {
      refuse("uses the operator " + name + " on " + node.input(0)->type()->repr_str());
    }
  }

  const std::string& file_;
  std::string name_;
  std::unordered_set<const Function*> seen_;
};

}  // namespace

bool is_allowed_operator(std::string_view name) { return std::ranges::binary_search(kOperators, name); }

void require_allowed_operators(const torch::jit::Module& module, const std::string& file) {
  Inspection inspection(file);
  for (const Function* function : module._ivalue()->compilation_unit()->get_functions())
    inspection.function(*function);
  for (const torch::jit::Module& part : module.modules()) inspection.class_methods(*part.type());
}

}  // namespace diad
