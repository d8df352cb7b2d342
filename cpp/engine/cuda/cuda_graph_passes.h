// Rewrites a frozen TorchScript graph for an accelerator.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <memory>

#include "cuda/cuda_group_norm.h"

namespace diad {

// Replaces every GroupNorm that has constant half-precision weights, fused with its neighbors, with
// DeviceGroupNorm. Works in place and returns the number of replacements.
int use_device_norms(const std::shared_ptr<torch::jit::Graph>& graph, const KernelLauncher& launch);

// Disables TF32 in convolutions, so that float32 keeps full precision: a traced convolution stores the
// allow_tf32 setting of the process that traced it. Works in place and returns the number of changes.
int forbid_tf32(const std::shared_ptr<torch::jit::Graph>& graph);

// Replaces index_select at tensor([step]) with a view of that row. Otherwise the index tensor would be copied
// to the device and synchronized, which graph capture does not allow. Works in place and returns the number
// of replacements.
int view_rows(const std::shared_ptr<torch::jit::Graph>& graph);

// Runs two branches concurrently: moves the longest stretch of nodes that do not depend on the graph input
// with index `input` to a second stream. In the denoiser these are the encoder and middle blocks, which do
// not depend on the hint. The nodes before the stretch stay on the first stream, and nodes that both need are
// computed first. Works in place without changing values. Returns the number of nodes on the second stream, 0
// if there is no such stretch between nodes that depend on the input. Has no effect on the CPU.
size_t overlap_branches(const std::shared_ptr<torch::jit::Graph>& graph, size_t input);

// Surrounds the execution of such a graph: if an error leaves the second branch, returns this thread to the
// first stream, which waits for the second.
class OverlapScope {
 public:
  OverlapScope() = default;
  ~OverlapScope();
  OverlapScope(const OverlapScope&) = delete;
  OverlapScope& operator=(const OverlapScope&) = delete;
};

}  // namespace diad
