// Rewrites a frozen TorchScript graph for an accelerator.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <memory>

#include "cuda/cuda_group_norm.h"

namespace diad {

// Every GroupNorm with constant half-precision weights, with what stands around it, becomes DeviceGroupNorm.
// In place; says how many.
int use_device_norms(const std::shared_ptr<torch::jit::Graph>& graph, const KernelLauncher& launch);

// float32 means float32: a traced convolution carries the permission to multiply in TF32 with it, whatever
// the process allows now. In place; says how many.
int forbid_tf32(const std::shared_ptr<torch::jit::Graph>& graph);

// Rows of tables that index_select takes at tensor([step]) become views at that step: the tensor would be
// copied to the device and waited for, which no recording of a graph may do. In place; says how many.
int view_rows(const std::shared_ptr<torch::jit::Graph>& graph);

// Lets two branches run side by side: the longest stretch of nodes that do not depend on the input at `input`
// (in the denoiser, what the network's encoder and middle do, which know nothing of the hint) goes to a
// second stream, the nodes before it stay on the first; what both need is computed before they part. In
// place, values unchanged; the number of nodes on the second stream, 0 if there is no such stretch between
// nodes that depend on that input. On the CPU the marks do nothing.
size_t overlap_branches(const std::shared_ptr<torch::jit::Graph>& graph, size_t input);

// Around the execution of such a graph: where an error leaves the second branch, this thread is back on the
// first stream, which waits for the second.
class OverlapScope {
 public:
  OverlapScope() = default;
  ~OverlapScope();
  OverlapScope(const OverlapScope&) = delete;
  OverlapScope& operator=(const OverlapScope&) = delete;
};

}  // namespace diad
