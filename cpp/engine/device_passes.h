// Rewrites a frozen TorchScript graph for an accelerator.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <memory>

#include "device_group_norm.h"

namespace diad {

// Every GroupNorm with constant half-precision weights, with what stands around it, becomes DeviceGroupNorm. In place; says how many.
int use_device_norms(const std::shared_ptr<torch::jit::Graph>& graph, const KernelLauncher& launch);

// Lets two branches run side by side: the longest stretch of nodes that do not depend on the input at `input` (in the denoiser, what the
// network's encoder and middle do, which know nothing of the hint) goes to a second stream, the nodes before it stay on the first; what
// both need is computed before they part. In place, values unchanged; the number of nodes on the second stream, 0 if there is no such
// stretch between nodes that depend on that input. On the CPU the marks do nothing.
size_t overlap_branches(const std::shared_ptr<torch::jit::Graph>& graph, size_t input);

}  // namespace diad
