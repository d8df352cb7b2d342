// Bounds the recursion depth of TorchScript's compiler and inliner over an archive's sources.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace diad {

// The compiler uses one stack frame per level of brackets, operators and blocks, and kCallLevels frames per
// call.
inline constexpr int64_t kCallLevels = 8;

// `sources` holds namespace ("__torch__.a.b") and text of each source. A function is compiled at its first
// call, within the calling expression. A function calls only functions of its own class or of classes that
// this class names. Therefore the sum of all functions' levels along the deepest path from class to class
// bounds the depth of any chain of calls. Returns that sum, or -1 if classes refer to each other in a cycle.
[[nodiscard]] int64_t max_call_depth(const std::vector<std::pair<std::string, std::string>>& sources);

}  // namespace diad
