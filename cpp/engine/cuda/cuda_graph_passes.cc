#include "cuda/cuda_graph_passes.h"

#include <ATen/core/List.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/library.h>

#include <algorithm>
#include <functional>
#include <tuple>
#include <unordered_set>
#include <utility>

#include "graph/graph_rewriter.h"

namespace diad {

namespace {

using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;

const c10::Symbol kGroupNorm = c10::Symbol::fromQualString("aten::group_norm");
const c10::Symbol kConvolution = c10::Symbol::fromQualString("aten::_convolution");
const c10::Symbol kIndexSelect = c10::Symbol::fromQualString("aten::index_select");
const c10::Symbol kTensor = c10::Symbol::fromQualString("aten::tensor");

class NormRewriter final : GraphRewriter {
 public:
  NormRewriter(const std::shared_ptr<Graph>& graph, const KernelLauncher& launch)
      : GraphRewriter(graph), launch_(launch) {}

  int run() {
    if (writes_in_place(graph_->block())) return 0;
    visit(graph_->block(), kGroupNorm, [this](Node* node) { rewrite(node); });
    torch::jit::EliminateDeadCode(graph_);
    return done_;
  }

 private:
  void rewrite(Node* node) {
    const OptionalTensor weight = constant_tensor(node->input(2)), bias = constant_tensor(node->input(3));
    const auto groups = torch::jit::toIValue(node->input(1)), eps = torch::jit::toIValue(node->input(4));
    if (!weight || !bias || !groups || !eps ||
        (weight->scalar_type() != at::kHalf && weight->scalar_type() != at::kBFloat16))
      return;
    const auto [x, shift, silu] = surroundings_of_norm(node);
    const GroupNormShape shape{groups->toInt(), eps->toDouble(), silu != nullptr};
    Node* const last = silu ? silu : node;
    const auto layer = c10::make_intrusive<DeviceGroupNorm>(*weight, *bias, shape, launch_);
    replace(last, "diad::device_group_norm", {x, shift ? shift : none(last), constant(last, layer)});
    if (silu) silu->destroy();
    node->destroy();
    ++done_;
  }

  const KernelLauncher& launch_;
  int done_ = 0;
};

class Tf32Rewriter final : GraphRewriter {
 public:
  explicit Tf32Rewriter(const std::shared_ptr<Graph>& graph) : GraphRewriter(graph) {}

  int run() {
    visit(graph_->block(), kConvolution, [this](Node* node) {
      // Older overloads lack the argument and use the process-wide setting.
      const auto place = node->schema().argumentIndexWithName("allow_tf32");
      if (!place) return;
      node->replaceInput(static_cast<size_t>(*place), constant(node, false));
      ++done_;
    });
    return done_;
  }

 private:
  int done_ = 0;
};

class RowRewriter final : GraphRewriter {
 public:
  explicit RowRewriter(const std::shared_ptr<Graph>& graph) : GraphRewriter(graph) {}

  int run() {
    if (writes_in_place(graph_->block())) return 0;
    visit(graph_->block(), kIndexSelect, [this](Node* node) { rewrite(node); });
    torch::jit::EliminateDeadCode(graph_);
    return done_;
  }

 private:
  void rewrite(Node* node) {
    const Node* const index = node->input(2)->node();
    if (index->kind() != kTensor || index->input(0)->node()->kind() != c10::prim::ListConstruct) return;
    const auto numbers = index->input(0)->node()->inputs();
    if (numbers.size() != 1 || numbers[0]->type() != c10::IntType::get()) return;
    replace(node, "aten::narrow", {node->input(0), node->input(1), numbers[0], constant(node, int64_t{1})});
    node->destroy();
    ++done_;
  }

  int done_ = 0;
};

class SideStream;
thread_local SideStream* open_side = nullptr;  // entered and not yet joined

// Streams of a stretch of nodes that runs concurrently, from its start to the first use of its values.
class SideStream final : public torch::CustomClassHolder {
 public:
  // Switches to a second stream, ordered after the work already queued on the current one.
  void enter(const at::Tensor& on) {
    if (on.is_cpu()) return;
    const c10::impl::VirtualGuardImpl implementation(on.device().type());
    first_ = implementation.getStream(on.device());
    if (!second_ || second_->device() != on.device())
      second_ = implementation.getStreamFromGlobalPool(on.device());
    order(*first_, *second_);
    implementation.exchangeStream(*second_);
    open_side = this;
  }

  // Switches back to the first stream, which does not wait.
  void leave() {
    if (first_) c10::impl::VirtualGuardImpl(first_->device_type()).exchangeStream(*first_);
  }

  // Makes the first stream wait for the second.
  void join() {
    open_side = nullptr;
    if (first_) order(*second_, *first_);
    first_.reset();
  }

 private:
  static void order(const c10::Stream& earlier, const c10::Stream& later) {
    c10::Event event(earlier.device_type());
    event.record(earlier);
    event.block(later);
  }

  std::optional<c10::Stream> first_, second_;
};

void enter_side(const at::Tensor& on, const c10::intrusive_ptr<SideStream>& streams) { streams->enter(on); }
void leave_side(const c10::intrusive_ptr<SideStream>& streams) { streams->leave(); }
// `kept` keeps the tensors alive until here: their memory belongs to the first stream, which would reuse it
// while the second stream still reads it.
void join_side(const std::vector<at::Tensor>& /*kept*/, const c10::intrusive_ptr<SideStream>& streams) {
  streams->join();
}

at::Tensor run_device_norm(const at::Tensor& x, const OptionalTensor& shift,
                           const c10::intrusive_ptr<DeviceGroupNorm>& layer) {
  check_cancelled();
  return layer->run(x, shift);
}

using Nodes = std::vector<Node*>;

// Nodes that depend on a value, including nodes in nested blocks.
class Dependants {
 public:
  explicit Dependants(const Value* value) { add_users(value); }

  [[nodiscard]] bool contains(const Node* node) const { return found_.contains(node); }

 private:
  void add_users(const Value* value) {
    for (const auto& use : value->uses()) add(use.user);
  }

  void add(const Node* node) {
    if (!found_.insert(node).second) return;
    if (const Node* const outer = node->owningBlock()->owningNode()) add(outer);
    for (const Value* output : node->outputs()) add_users(output);
  }

  std::unordered_set<const Node*> found_;
};

// Calls `action` for everything a node reads: its inputs, and outer values used in its nested blocks.
void for_each_input(Node* node, const std::function<void(Value*)>& action) {
  for (Value* input : node->inputs()) action(input);
  for (torch::jit::Block* block : node->blocks()) {
    for (Node* inner : block->nodes()) for_each_input(inner, action);
    for_each_input(block->return_node(), action);
  }
}

bool is_constant(const Node* node) { return node->kind() == c10::prim::Constant; }

// Returns whether a block has side effects, so that the order of its nodes matters.
bool has_effects(const torch::jit::Block* block) {
  return std::any_of(block->nodes().begin(), block->nodes().end(), [](const Node* node) {
    return node->hasSideEffects() || std::any_of(node->blocks().begin(), node->blocks().end(), has_effects);
  });
}

bool holds_tensors(const c10::Type& type) {
  return type.isSubtypeOf(*c10::TensorType::get()) || type.kind() == c10::TypeKind::AnyType ||
         std::any_of(type.containedTypes().begin(), type.containedTypes().end(),
                     [](const auto& inner) { return holds_tensors(*inner); });
}

}  // namespace

OverlapScope::~OverlapScope() {
  SideStream* const side = std::exchange(open_side, nullptr);
  if (side == nullptr) return;
  side->leave();
  try {
    side->join();
  } catch (const std::exception&) {  // the device rejects events: the error in flight reports it
  }
}

int forbid_tf32(const std::shared_ptr<Graph>& graph) { return Tf32Rewriter(graph).run(); }

int view_rows(const std::shared_ptr<Graph>& graph) { return RowRewriter(graph).run(); }

int use_device_norms(const std::shared_ptr<Graph>& graph, const KernelLauncher& launch) {
  return NormRewriter(graph, launch).run();
}

size_t overlap_branches(const std::shared_ptr<Graph>& graph, size_t input) {
  if (writes_in_place(graph->block()) || has_effects(graph->block())) return 0;
  const Dependants dependants(graph->inputs().at(input));
  Nodes constants, nodes;
  for (Node* node : graph->nodes()) (is_constant(node) ? constants : nodes).push_back(node);
  const auto depends = [&](const Node* node) { return dependants.contains(node); };

  // Find the longest stretch of independent nodes between two dependent ones.
  auto first = nodes.end(), last = nodes.end();
  for (auto at = std::find_if(nodes.begin(), nodes.end(), depends); at != nodes.end();) {
    const auto begin = std::find_if_not(at, nodes.end(), depends),
               end = std::find_if(begin, nodes.end(), depends);
    if (end != nodes.end() && (first == nodes.end() || end - begin > last - first))
      std::tie(first, last) = std::pair(begin, end);
    at = end;
  }
  if (first == nodes.end()) return 0;

  // Find the earlier nodes that the stretch needs, and the outside tensors that it reads.
  const std::unordered_set<const Node*> before(nodes.begin(), first), aside(first, last);
  std::unordered_set<const Node*> needed;
  std::vector<Value*> read;
  bool keepable = true;
  const std::function<void(Node*)> need = [&](Node* node) {
    for_each_input(node, [&](Value* value) {
      const bool is_input = value->node()->kind() == c10::prim::Param && value->owningGraph() == graph.get();
      if (!before.contains(value->node()) && !is_input) return;
      if (holds_tensors(*value->type()) && std::find(read.begin(), read.end(), value) == read.end()) {
        keepable = keepable && value->type()->isSubtypeOf(*c10::TensorType::get());
        read.push_back(value);
      }
      if (before.contains(value->node()) && needed.insert(value->node()).second) need(value->node());
    });
  };
  std::for_each(first, last, need);
  if (!keepable || read.empty()) return 0;

  // New order: constants, needed nodes, the stretch on the second stream, the other earlier nodes, the rest.
  Node* const rest = *last;
  const auto streams = c10::make_intrusive<SideStream>();
  for (Node* node : constants) node->moveBefore(rest);
  const auto append = [&](const char* kind, const std::vector<Value*>& inputs, size_t outputs = 0) {
    return graph->create(c10::Symbol::fromQualString(kind), inputs, outputs)->insertBefore(rest);
  };
  Value* side = nullptr;
  {
    const torch::jit::WithInsertPoint at(rest);
    side = graph->insertConstant(c10::IValue(streams));
  }
  const auto move = [&](auto begin, auto end, bool of_needed) {
    std::for_each(begin, end, [&](Node* node) {
      if (needed.contains(node) == of_needed) node->moveBefore(rest);
    });
  };
  move(nodes.begin(), first, true);
  append("diad::enter_side", {read.front(), side});
  move(first, last, false);
  append("diad::leave_side", {side});
  move(nodes.begin(), first, false);
  Node* const kept = append("prim::ListConstruct", read, 1);
  kept->output()->setType(c10::ListType::ofTensors());
  append("diad::join_side", {kept->output(), side});
  return aside.size();
}

TORCH_LIBRARY_FRAGMENT(diad, library) {
  // Conservative alias analysis: no node is removed or moved across these.
  const auto schema = [](const char* text) {
    return torch::schema(text, c10::AliasAnalysisKind::CONSERVATIVE);
  };
  library.class_<DeviceGroupNorm>("DeviceGroupNorm");
  library.class_<SideStream>("SideStream");
  library.def(
      "device_group_norm(Tensor x, Tensor? shift, __torch__.torch.classes.diad.DeviceGroupNorm layer) -> "
      "Tensor",
      run_device_norm);
  library.def(schema("enter_side(Tensor on, __torch__.torch.classes.diad.SideStream streams) -> ()"),
              enter_side);
  library.def(schema("leave_side(__torch__.torch.classes.diad.SideStream streams) -> ()"), leave_side);
  library.def(schema("join_side(Tensor[] kept, __torch__.torch.classes.diad.SideStream streams) -> ()"),
              join_side);
}

}  // namespace diad
