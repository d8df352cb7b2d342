// Tests the bound on the compiler's recursion depth.
#include "bundle/recursion_limit.h"

#include <string>
#include <utility>
#include <vector>

#include "support.h"

namespace {

using Sources = std::vector<std::pair<std::string, std::string>>;

std::string method(const std::string& name, const std::string& expression) {
  std::string text = "  def ";  // in pieces: GCC 12 warns about an overlapping copy in a sum of strings
  text.append(name)
      .append("(self: __torch__.M, x: Tensor) -> Tensor:\n    return ")
      .append(expression)
      .append("\n");
  return text;
}

// A class M with a chain of methods that each call the next.
std::string chain(int count) {
  std::string text = "class M(Module):\n  training : bool\n";
  for (int i = 0; i < count; ++i) {
    text += method(std::string("m").append(std::to_string(i)),
                   std::string("(self).m").append(std::to_string(i + 1)).append("(x, )"));
  }
  return text;
}

}  // namespace

TEST_CASE("call depth: counts every function of a class with its deepest statement") {
  const int64_t one = diad::max_call_depth({{"__torch__", chain(1)}});
  CHECK(one >= diad::kCallLevels);
  CHECK(one < 3 * diad::kCallLevels);
  CHECK(diad::max_call_depth({{"__torch__", chain(1000)}}) == 1000 * one);
  const std::string head = "class M(Module):\n";
  const auto deepest = [&](const std::string& expression) {
    return diad::max_call_depth({{"__torch__", head + method("f", expression)}});
  };
  const auto bracketed = [](size_t times) { return std::string(times, '(') + "x" + std::string(times, ')'); };
  const auto negated = [](size_t times) { return std::string(times, '-') + "x"; };
  CHECK(deepest(bracketed(50)) == deepest(bracketed(20)) + 30);
  CHECK(deepest(negated(50)) == deepest(negated(20)) + 30);
  // Consecutive statements do not add up, but lines within one bracket do.
  CHECK(deepest(negated(20) + "\n    y = " + negated(20)) == deepest("y + " + negated(20)));
  CHECK(deepest(negated(20) + " + (\n    " + negated(20) + ")") == deepest(negated(41) + "(x)"));
}

TEST_CASE("call depth: follows the deepest path from class to class across files") {
  const auto holder = [](const std::string& name, const std::string& attribute) {
    std::string text = "class ";
    text.append(name)
        .append("(Module):\n  inner : ")
        .append(attribute)
        .append("\n  def forward(self: __torch__.")
        .append(name);
    return text.append(",\n    x: Tensor) -> Tensor:\n    return (self.inner).forward(x, )\n");
  };
  const std::string inner =
      "class Inner(Module):\n  def forward(self: __torch__.a.b.Inner,\n    x: Tensor) -> Tensor:\n    return "
      "x\n";
  const auto depth = [](const Sources& sources) { return diad::max_call_depth(sources); };
  const int64_t alone = depth({{"__torch__.a.b", inner}});
  const int64_t both =
      depth({{"__torch__.a.b", inner}, {"__torch__", holder("Outer", "__torch__.a.b.Inner")}});
  CHECK(both > alone);
  CHECK(depth({{"__torch__.a.b", inner},
               {"__torch__",
                holder("Outer", "__torch__.a.b.Inner") + holder("Other", "__torch__.a.b.Inner")}}) == both);
  CHECK(depth({{"__torch__.a.b", inner},
               {"__torch__", holder("Outer", "__torch__.a.b.Inner") +
                                 holder("Outermost", "List[__torch__.Outer]")}}) > both);
  CHECK(depth({{"__torch__", holder("Outer", "__torch__.nowhere.Inner")}}) == both - alone);
  CHECK(depth({{"__torch__", holder("A", "__torch__.B") + holder("B", "__torch__.A")}}) == -1);
  CHECK(depth({{"__torch__",
                "def f(x: Tensor) -> Tensor:\n  return __torch__.g(x)\ndef g(x: Tensor) -> Tensor:\n  return "
                "x\n"}}) >= 2 * diad::kCallLevels);
  CHECK(depth({}) == 0);
  CHECK(depth({{"__torch__", ""}, {"__torch__.x", "no code\n\n"}, {"__torch__.y", "class"}}) == 0);
}
