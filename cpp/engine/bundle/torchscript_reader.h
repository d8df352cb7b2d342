// Reading a TorchScript file without running anything of it.
#pragma once

#include <torch/csrc/jit/api/module.h>

#include <filesystem>
#include <string>

namespace diad {

// Reads a file written by torch.jit.save onto the CPU. Unlike torch::jit::load it runs no __setstate__, takes
// no older or flat-buffer format, creates no object that is not a module, believes no length the file states
// without comparing it with what is there, and holds every function of the file against the operator
// allow-list.
//
// `name` is the file's name in messages. Throws EngineError ERR_DIAD_BUNDLE_INVALID for what a bundle may not
// contain and ERR_DIAD_BUNDLE_CORRUPT for what does not add up; other exceptions of LibTorch's pass through.
[[nodiscard]] torch::jit::Module read_torchscript(const std::filesystem::path& file, const std::string& name);

}  // namespace diad
