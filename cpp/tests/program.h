// A runnable TorchScript graph, parsed from text.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/jit/ir/irparser.h>
#include <torch/csrc/jit/runtime/interpreter.h>

#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

struct Program {
  std::shared_ptr<torch::jit::Graph> graph = std::make_shared<torch::jit::Graph>();

  explicit Program(const std::string& text,
                   const std::vector<std::pair<std::string, at::Tensor>>& constants = {}) {
    std::unordered_map<std::string, torch::jit::Value*> values;
    torch::jit::parseIR(text, graph.get(), values);
    for (const auto& [name, tensor] : constants) {
      const torch::jit::WithInsertPoint at(*graph->nodes().begin());
      values.at(name)->replaceAllUsesWith(graph->insertConstant(tensor));
    }
    for (size_t i = graph->inputs().size(); i-- > 0;) {
      if (graph->inputs()[i]->uses().empty()) graph->eraseInput(i);
    }
  }

  at::Tensor run(const std::vector<at::Tensor>& inputs) const {
    torch::jit::Stack stack(inputs.begin(), inputs.end());
    torch::jit::InterpreterState(torch::jit::Code(graph, "test")).run(stack);
    return stack.at(0).toTensor();
  }

  [[nodiscard]] size_t count(const char* kind) const {
    size_t found = 0;
    for (const auto* node : graph->nodes()) found += node->kind() == c10::Symbol::fromQualString(kind);
    return found;
  }
};
