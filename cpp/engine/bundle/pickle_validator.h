// Inspection of a TorchScript archive's pickle before LibTorch interprets it.
#pragma once

#include <string>
#include <string_view>

namespace diad {

// Walks the opcodes as LibTorch's unpickler would, without building anything. Accepts what torch.jit.save
// writes for modules made of tensors, numbers, strings and lists of them: no other global than tensor,
// storage and module constructors, no operand that is missing from the stack, no storage of a type that is no
// storage, no nesting beyond 256 levels.
//
// Throws EngineError ERR_DIAD_BUNDLE_INVALID for a global or opcode outside that set, ERR_DIAD_BUNDLE_CORRUPT
// for a stream that breaks off or does not add up; messages begin with `where`.
void check_pickle(std::string_view bytes, const std::string& where);

}  // namespace diad
