// How deep TorchScript's compiler and inliner would recurse over an archive's sources.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace diad {

// A compiler frame on the stack for each level of brackets, operators and blocks, and kCallLevels for a
// function that another calls.
inline constexpr int64_t kCallLevels = 8;

// `sources`: namespace ("__torch__.a.b") and text of each. A function is compiled where another first calls
// it, within the expression that calls it. What a function calls is of its own class or of those that the
// class names; so the deepest chain of calls is at most, along the deepest path from class to class, the sum
// of all functions' levels. Returns that sum; -1 where classes name one another in a circle.
[[nodiscard]] int64_t max_call_depth(const std::vector<std::pair<std::string, std::string>>& sources);

}  // namespace diad
