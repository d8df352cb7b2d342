// Rewrites a frozen TorchScript graph for the CPU: prepacked layers (cpu_layers.h) and fused norms (group_norm.h) in place of single
// operators.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <memory>

namespace diad {

// What a rewriting found; for tests and the profile.
struct CpuRewrites {
  int convolutions = 0, upsampled_convolutions = 0, linears = 0, norms = 0;
};

// Whether this machine has instructions for sums of products in that type, so that rewriting pays: float32 always, bfloat16 with AMX or
// AVX512_BF16.
[[nodiscard]] bool cpu_multiplies(c10::ScalarType type);

// In place. The graph's weights must be constants (a frozen module), those that are rewritten of type `computed_in`, float32 or bfloat16;
// what is not recognised stays as it is. The result computes the same sums in another order: differences are the type's own. `runs`: how
// often a picture passes through the graph.
CpuRewrites optimise_for_cpu(const std::shared_ptr<torch::jit::Graph>& graph, int64_t runs = 1, c10::ScalarType computed_in = c10::kFloat);

}  // namespace diad
