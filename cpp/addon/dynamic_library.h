// Opening shared libraries at run time: the dynamic loader's interface on Linux, macOS and Windows.
#pragma once

#include <filesystem>
#include <string>

namespace diad_addon {

// Whether later libraries resolve their undefined symbols here too. Windows resolves by the name of the
// library and knows no difference.
enum class Visibility { kGlobal, kLocal };

// A path from UTF-8, whatever the platform's own encoding is.
std::filesystem::path utf8_path(const std::string& path);

// Opens a library by absolute path (UTF-8), never to be unmapped; nullptr on failure, with the loader's own
// words in `reason`.
void* open_library(const std::string& path, Visibility visibility, std::string& reason);

// Address of a symbol, or nullptr.
void* find_symbol(void* library, const char* name);

}  // namespace diad_addon
