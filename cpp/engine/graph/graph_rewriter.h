// Base of the passes over frozen TorchScript graphs: finds and replaces nodes.
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

// Returns the only user of a node's output if it has the given kind, otherwise null.
[[nodiscard]] torch::jit::Node* only_user(torch::jit::Node* node, c10::Symbol kind);

// Returns x of add(x, y, alpha = 1) or add(y, x, 1), given y.
[[nodiscard]] torch::jit::Value* other_summand(torch::jit::Node* add, const torch::jit::Value* known);

// Returns whether anything in a block or its nested blocks writes to a tensor in place. Readers of that
// tensor must not be moved.
[[nodiscard]] bool writes_in_place(const torch::jit::Block* block);

class GraphRewriter {
 public:
  explicit GraphRewriter(std::shared_ptr<torch::jit::Graph> graph) : graph_(std::move(graph)) {}

 protected:
  // group_norm(x, groups, weight, bias, eps, cudnn) with an optional per-channel addition before it and an
  // optional SiLU after it.
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

  // Inserts a node with the given name before `last` and redirects the uses of last's output to it.
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
