// Validates the pickles of a TorchScript archive before LibTorch interprets them.
#pragma once

#include <string>
#include <string_view>

namespace diad {

// Walks the opcodes as LibTorch's unpickler would, without building any value. Accepts what torch.jit.save
// writes for modules made of tensors, numbers, strings and lists of them. Rejects all globals except tensor,
// storage and module constructors, stack underflow, storages of an unknown type and nesting beyond 256
// levels.
//
// Throws EngineError ERR_DIAD_BUNDLE_INVALID for a disallowed global or opcode and ERR_DIAD_BUNDLE_CORRUPT
// for a truncated or inconsistent stream. Messages begin with `where`.
void check_pickle(std::string_view bytes, const std::string& where);

}  // namespace diad
