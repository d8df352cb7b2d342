#include "graph/graph_rewriter.h"

#include <algorithm>

namespace diad {

namespace {

using torch::jit::Node;
using torch::jit::Value;

const c10::Symbol kAdd = c10::Symbol::fromQualString("aten::add");
const c10::Symbol kSilu = c10::Symbol::fromQualString("aten::silu");
const c10::Symbol kUnsqueeze = c10::Symbol::fromQualString("aten::unsqueeze");

}  // namespace

OptionalTensor constant_tensor(const Value* value) {
  const auto found = torch::jit::toIValue(value);
  if (!found || !found->isTensor()) return std::nullopt;
  return found->toTensor();
}

bool is_none(const Value* value) {
  const auto found = torch::jit::toIValue(value);
  return found && found->isNone();
}

Node* only_user(Node* node, c10::Symbol kind) {
  const auto& uses = node->output()->uses();
  return uses.size() == 1 && uses.front().user->kind() == kind ? uses.front().user : nullptr;
}

Value* other_summand(Node* add, const Value* known) {
  const auto alpha = torch::jit::toIValue(add->input(2));
  if (!alpha || !alpha->isInt() || alpha->toInt() != 1) return nullptr;
  Value* const other = add->input(0) == known ? add->input(1) : add->input(0);
  return other == known || !other->type()->isSubtypeOf(*c10::TensorType::get()) ? nullptr : other;
}

bool writes_in_place(const torch::jit::Block* block) {
  return std::any_of(block->nodes().begin(), block->nodes().end(), [](const Node* node) {
    const auto* const schema = node->maybeSchema();
    return (schema != nullptr && schema->is_mutable()) ||
           std::any_of(node->blocks().begin(), node->blocks().end(), writes_in_place);
  });
}

GraphRewriter::Norm GraphRewriter::surroundings_of_norm(Node* norm) {
  Value *x = norm->input(0), *shift = nullptr;
  Node* const before = x->node();
  if (before->kind() == kAdd && x->uses().size() == 1) {
    for (const size_t i : {0, 1}) {
      Value* const summand = before->input(i);
      if (shift == nullptr && summand->node()->kind() == kUnsqueeze && other_summand(before, summand))
        shift = summand;
    }
    if (shift) x = other_summand(before, shift);
  }
  return {x, shift, only_user(norm, kSilu)};
}

void GraphRewriter::replace(Node* last, const char* name, const std::vector<Value*>& inputs) {
  Node* const node = graph_->create(c10::Symbol::fromQualString(name), inputs);
  node->insertBefore(last);
  node->copyMetadata(last);  // errors keep their source location
  node->output()->setType(c10::TensorType::get());
  last->output()->replaceAllUsesWith(node->output());
}

}  // namespace diad
