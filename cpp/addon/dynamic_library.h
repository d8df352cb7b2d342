// Opens shared libraries at run time on Linux, macOS and Windows.
#pragma once

#include <filesystem>
#include <string>

namespace diad_addon {

// Whether libraries that are opened later resolve undefined symbols in this one. Windows resolves by library
// name and ignores it.
enum class Visibility { kGlobal, kLocal };

// Converts UTF-8 to a path, independent of the platform's encoding.
std::filesystem::path utf8_path(const std::string& path);

// Opens a library by absolute path (UTF-8) and never unmaps it. Returns nullptr on failure, with the loader's
// message in `reason`.
void* open_library(const std::string& path, Visibility visibility, std::string& reason);

// Returns the address of a symbol, or nullptr.
void* find_symbol(void* library, const char* name);

}  // namespace diad_addon
