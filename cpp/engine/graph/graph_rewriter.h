// What rewritings of a frozen TorchScript graph share: finding nodes and what surrounds them, putting others
// in their place.
#pragma once

#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/ir/ir.h>

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "support/cancellation.h"

namespace diad {

using OptionalTensor = std::optional<at::Tensor>;

[[nodiscard]] OptionalTensor constant_tensor(const torch::jit::Value* value);
[[nodiscard]] bool is_none(const torch::jit::Value* value);

// The only user of a node's output, if it is of that kind.
[[nodiscard]] torch::jit::Node* only_user(torch::jit::Node* node, c10::Symbol kind);

// x of add(x, y, alpha = 1) or add(y, x, 1), given y.
[[nodiscard]] torch::jit::Value* other_summand(torch::jit::Node* add, const torch::jit::Value* known);

// Whether anything in a block, or in blocks inside it, writes into a tensor: then what reads it must not be
// moved.
[[nodiscard]] bool writes_in_place(const torch::jit::Block* block);

class GraphRewriter {
 public:
  explicit GraphRewriter(std::shared_ptr<torch::jit::Graph> graph) : graph_(std::move(graph)) {}

 protected:
  // group_norm(x, groups, weight, bias, eps, cudnn) with an addition of one value a channel before it and
  // SiLU after it.
  struct Norm {
    torch::jit::Value* x;
    torch::jit::Value* shift;  // [N or 1, C, 1, 1]; null: none
    torch::jit::Node* silu;    // null: none
  };
  static Norm surroundings_of_norm(torch::jit::Node* norm);

  template <typename Action>
  void visit(torch::jit::Block* block, c10::Symbol kind, const Action& action) {
    std::vector<torch::jit::Node*> found;
    for (torch::jit::Node* node : block->nodes()) {
      for (torch::jit::Block* inner : node->blocks()) visit(inner, kind, action);
      if (node->kind() == kind) found.push_back(node);
    }
    for (torch::jit::Node* node : found) {
      check_cancelled();  // packing the weights of a large model takes seconds
      action(node);
    }
  }

  // Puts a node of that name in front of `last`, whose output it takes over.
  void replace(torch::jit::Node* last, const char* name, const std::vector<torch::jit::Value*>& inputs);

  torch::jit::Value* none(torch::jit::Node* before) { return constant(before, c10::IValue()); }

  template <typename T>
  torch::jit::Value* constant(torch::jit::Node* before, T value) {
    const torch::jit::WithInsertPoint at(before);
    return graph_->insertConstant(c10::IValue(std::move(value)));
  }

  std::shared_ptr<torch::jit::Graph> graph_;
};

}  // namespace diad
