#include "bundle/recursion_limit.h"

#include <algorithm>
#include <cctype>
#include <string_view>
#include <unordered_map>

namespace diad {

namespace {

constexpr std::string_view kRoot = "__torch__.";

struct Unit {  // a class, or a function outside classes
  int64_t levels = 0;
  std::vector<std::string> names;  // qualified names in its text
  enum class State { kNew, kOpen, kDone } state = State::kNew;
  int64_t deepest = 0;  // maximum depth of the paths that begin here, once done
};

using Units = std::unordered_map<std::string, Unit>;

bool is_of_name(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '.'; }

// Returns the name after a keyword at the start of an unindented line, or an empty string.
std::string_view name_after(std::string_view line, std::string_view keyword) {
  if (!line.starts_with(keyword)) return {};
  line.remove_prefix(keyword.size());
  const auto end =
      std::find_if_not(line.begin(), line.end(), [](char c) { return is_of_name(c) && c != '.'; });
  return line.substr(0, static_cast<size_t>(end - line.begin()));
}

void add_names(std::string_view line, std::vector<std::string>& names) {
  for (size_t at = line.find(kRoot); at != line.npos; at = line.find(kRoot, at + 1)) {
    const auto end = std::find_if_not(line.begin() + static_cast<std::ptrdiff_t>(at), line.end(), is_of_name);
    names.emplace_back(line.begin() + static_cast<std::ptrdiff_t>(at), end);
  }
}

// Adds the classes and functions of one source.
void add_units(const std::string& of_namespace, std::string_view text, Units& units) {
  Unit* unit = nullptr;
  int64_t of_function = 0, of_statement = 0, brackets = 0, deepest_brackets = 0;
  const auto end_function = [&] {
    if (unit != nullptr) unit->levels += of_function;
    of_function = 0;
  };
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size() - 1);
    const std::string_view line = text.substr(0, end + 1);
    text.remove_prefix(end + 1);
    const size_t indent = std::min(line.find_first_not_of(' '), line.size());
    const std::string_view words = line.substr(indent);
    const bool defines = words.starts_with("def ");
    if (brackets == 0 && indent == 0) {
      const std::string_view name = defines ? name_after(words, "def ") : name_after(words, "class ");
      if (!name.empty()) {
        end_function();
        unit = &units[of_namespace + "." + std::string(name)];
      }
    }
    if (unit == nullptr) continue;
    if (defines) {
      end_function();
      of_function = kCallLevels;
    }
    add_names(line, unit->names);
    for (const char c : words) {
      if (c == '(' || c == '[' || c == '{') deepest_brackets = std::max(deepest_brackets, ++brackets);
      if ((c == ')' || c == ']' || c == '}') && brackets > 0) --brackets;
      of_statement += std::string_view("+-*/%~<>=!|&^@").find(c) != std::string_view::npos;
    }
    const int64_t levels = kCallLevels + of_statement + deepest_brackets + static_cast<int64_t>(indent / 2);
    if (of_function > 0) of_function = std::max(of_function, levels);
    if (brackets == 0) of_statement = deepest_brackets = 0;
  }
  end_function();
}

// Iterative depth-first search. Returns false if there is a cycle.
bool measure(const std::string& name, Units& units) {
  struct Open {
    Unit* unit;
    size_t next = 0;
  };
  std::vector<Open> path;
  const auto open = [&](const std::string& of) {
    const auto found = units.find(of);
    if (found == units.end() || found->second.state == Unit::State::kDone) return true;
    if (found->second.state == Unit::State::kOpen)
      return !path.empty() && path.back().unit == &found->second;  // a reference to itself
    found->second.state = Unit::State::kOpen;
    path.push_back({&found->second});
    return true;
  };
  if (!open(name)) return false;
  while (!path.empty()) {
    Open& last = path.back();
    if (last.next < last.unit->names.size()) {
      if (!open(last.unit->names[last.next++])) return false;
      continue;
    }
    int64_t below = 0;
    for (const std::string& each : last.unit->names) {
      const auto found = units.find(each);
      if (found != units.end() && &found->second != last.unit) below = std::max(below, found->second.deepest);
    }
    last.unit->deepest = last.unit->levels + below;
    last.unit->state = Unit::State::kDone;
    path.pop_back();
  }
  return true;
}

}  // namespace

int64_t max_call_depth(const std::vector<std::pair<std::string, std::string>>& sources) {
  Units units;
  for (const auto& [of_namespace, text] : sources) add_units(of_namespace, text, units);
  int64_t deepest = 0;
  for (auto& [name, unit] : units) {
    if (!measure(name, units)) return -1;
    deepest = std::max(deepest, unit.deepest);
  }
  return deepest;
}

}  // namespace diad
