// Allowlist of the operators that a bundle's TorchScript can use: tensor arithmetic only.
#pragma once

#include <torch/csrc/jit/api/module.h>

#include <string>
#include <string_view>

namespace diad {

// Returns whether an operator, by its qualified name ("aten::linear"), is on the allowlist.
[[nodiscard]] bool is_allowed_operator(std::string_view name);

// Checks every function of the module's compilation unit and every method and hook of every submodule's
// class, nested blocks included, without running anything. Throws EngineError ERR_DIAD_BUNDLE_INVALID with
// `file`, the function and the first operator that is not on the allowlist.
void require_allowed_operators(const torch::jit::Module& module, const std::string& file);

}  // namespace diad
