// Which operators a bundle's TorchScript may use: arithmetic on tensors, and nothing that reaches outside
// them.
#pragma once

#include <torch/csrc/jit/api/module.h>

#include <string>
#include <string_view>

namespace diad {

// Whether an operator, by its qualified name ("aten::linear"), is in the numeric set.
[[nodiscard]] bool is_allowed_operator(std::string_view name);

// Walks every function that the module's compilation unit holds and every method and hook of every
// submodule's class, nested blocks included. Nothing is run. Throws EngineError ERR_DIAD_BUNDLE_INVALID
// naming `file`, the function and the first operator outside the numeric set.
void require_allowed_operators(const torch::jit::Module& module, const std::string& file);

}  // namespace diad
