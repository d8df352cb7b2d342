#include "dynamic_library.h"

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>

#include <system_error>
#else
#include <dlfcn.h>
#endif

namespace diad_addon {

std::filesystem::path utf8_path(const std::string& path) { return std::u8string(path.begin(), path.end()); }

#ifdef _WIN32

// Searches the library's own folder for its dependencies, so that torch_cpu.dll and c10.dll are found next to
// torch.dll. A mapped library satisfies later lookups of its name.
void* open_library(const std::string& path, Visibility, std::string& reason) {
  std::filesystem::path native = utf8_path(path);
  native.make_preferred();  // LOAD_LIBRARY_SEARCH_DLL_LOAD_DIR requires backslashes
  HMODULE library = LoadLibraryExW(native.c_str(), nullptr,
                                   LOAD_LIBRARY_SEARCH_DLL_LOAD_DIR | LOAD_LIBRARY_SEARCH_DEFAULT_DIRS);
  if (library == nullptr)
    reason = path + ": " + std::system_category().message(static_cast<int>(GetLastError()));
  return reinterpret_cast<void*>(library);
}

void* find_symbol(void* library, const char* name) {
  return reinterpret_cast<void*>(GetProcAddress(reinterpret_cast<HMODULE>(library), name));
}

#else

void* open_library(const std::string& path, Visibility visibility, std::string& reason) {
  const int scope = visibility == Visibility::kGlobal ? RTLD_GLOBAL : RTLD_LOCAL;
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_NODELETE | scope);
  if (library == nullptr) {
    const char* text = dlerror();
    reason = text == nullptr ? "unknown reason" : text;
  }
  return library;
}

void* find_symbol(void* library, const char* name) { return dlsym(library, name); }

#endif

}  // namespace diad_addon
