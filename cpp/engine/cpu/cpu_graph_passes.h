// Rewrites a frozen TorchScript graph for the CPU: replaces operators with packed layers
// (cpu/packed_layers.h) and fused norms (cpu/group_norm.h).
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <memory>

#include "cpu/cpu_features.h"

namespace diad {

// Number of rewrites by kind, for tests and profiling.
struct CpuRewrites {
  int convolutions = 0, upsampled_convolutions = 0, depthwise_convolutions = 0, linears = 0, norms = 0,
      instance_norms = 0, layer_norms = 0, attentions = 0, gates = 0;
};

struct CpuOptions {
  int64_t runs = 1;                           // how often an image passes through the graph
  c10::ScalarType computed_in = c10::kFloat;  // or bfloat16: type of the weights to rewrite
  // Quantizes float32 convolutions and linear layers to 8 bits where QuantizedConv supports them.
  bool quantized = false;
};

// Rewrites the graph in place. Its weights must be constants (a frozen module); unrecognized operators stay
// unchanged. Unless quantized, the result differs only by the rounding of another summation order.
CpuRewrites optimize_for_cpu(const std::shared_ptr<torch::jit::Graph>& graph, const CpuOptions& options = {});

}  // namespace diad
