// Rewrites a frozen TorchScript graph for the CPU: prepacked layers (cpu_layers.h) and fused norms
// (group_norm.h) in place of single operators.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <memory>

#include "cpu/cpu_features.h"

namespace diad {

// What a rewriting found; for tests and the profile.
struct CpuRewrites {
  int convolutions = 0, upsampled_convolutions = 0, depthwise_convolutions = 0, linears = 0, norms = 0,
      instance_norms = 0, layer_norms = 0, attentions = 0, gates = 0;
};

struct CpuOptions {
  int64_t runs = 1;                           // how often an image passes through the graph
  c10::ScalarType computed_in = c10::kFloat;  // or bfloat16: of the weights that are rewritten
  bool quantized =
      false;  // float32 convolutions and linear layers in 8-bit integers, where QuantizedConv takes them
};

// In place. The graph's weights must be constants (a frozen module); what is not recognized stays as it is.
// Unless quantized, the result computes the same sums in another order: differences are the type's own.
CpuRewrites optimize_for_cpu(const std::shared_ptr<torch::jit::Graph>& graph, const CpuOptions& options = {});

}  // namespace diad
