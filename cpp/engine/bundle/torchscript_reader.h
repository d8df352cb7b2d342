// Reads TorchScript files without running code from them.
#pragma once

#include <torch/csrc/jit/api/module.h>

#include <filesystem>
#include <string>

namespace diad {

// Reads a file written by torch.jit.save onto the CPU. Unlike torch::jit::load it runs no __setstate__,
// rejects older and flatbuffer formats, creates only modules, checks every length in the file against the
// actual data, and checks every function against the operator allowlist.
//
// `name` is the file's name in messages. Throws EngineError ERR_DIAD_BUNDLE_INVALID for disallowed content
// and ERR_DIAD_BUNDLE_CORRUPT for inconsistent content. Other exceptions of LibTorch pass through.
[[nodiscard]] torch::jit::Module read_torchscript(const std::filesystem::path& file, const std::string& name);

}  // namespace diad
