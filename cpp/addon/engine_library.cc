#include "engine_library.h"

#include <dlfcn.h>
#include <sys/stat.h>

#include <atomic>
#include <cstdlib>
#include <mutex>

namespace diad_addon {

namespace {

// Process-wide and never destroyed: native threads of several environments may still read it while the process exits.
struct Library {
  std::mutex mutex;
  std::string libtorch_folder, engine_path;
  EngineApi api;
  std::atomic<bool> opened{false};
};

Library& library() {
  static auto* instance = new Library;
  return *instance;
}

bool exists(const std::string& file) {
  struct stat status{};
  return stat(file.c_str(), &status) == 0;
}

// OpenMP's threads spin at each barrier by default: on a machine that has other work, inference becomes ten times slower. libgomp
// reads this once, when LibTorch brings it in; what the user has set stays.
void avoid_spinning() { setenv("OMP_WAIT_POLICY", "PASSIVE", /*overwrite=*/0); }

std::string last_dl_error() {
  const char* text = dlerror();
  return text == nullptr ? "unknown reason" : text;
}

template <typename Function>
bool resolve(void* handle, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(handle, name));
  return function != nullptr;
}

bool resolve_all(void* handle, EngineApi& api) {
  return resolve(handle, "diad_engine_abi", api.abi) && resolve(handle, "diad_engine_version", api.version) &&
         resolve(handle, "diad_engine_load", api.load) && resolve(handle, "diad_engine_info", api.info) &&
         resolve(handle, "diad_engine_submit", api.submit) && resolve(handle, "diad_engine_cancel", api.cancel) &&
         resolve(handle, "diad_engine_stats", api.stats) && resolve(handle, "diad_engine_close", api.close) &&
         resolve(handle, "diad_engine_result_free", api.result_free) && resolve(handle, "diad_engine_last_error", api.last_error);
}

}  // namespace

CodedError open_engine_library(const std::string& libtorch_folder, const std::string& engine_path) {
  Library& shared = library();
  const std::lock_guard lock(shared.mutex);
  if (shared.opened) {
    if (shared.libtorch_folder == libtorch_folder && shared.engine_path == engine_path) return {};
    return {"ERR_DIAD_LIBTORCH_MISMATCH", "This process already runs LibTorch from " + shared.libtorch_folder +
                                              " and cannot open another from " + libtorch_folder + "; start a new process"};
  }
  const std::string libtorch = libtorch_folder + "/libtorch.so";
  if (!exists(libtorch)) return {"ERR_DIAD_LIBTORCH_NOT_FOUND", "There is no " + libtorch};
  if (!exists(engine_path))
    return {"ERR_DIAD_LIBTORCH_NOT_FOUND", "There is no engine library at " + engine_path + "; build it with `npm run build`"};
  avoid_spinning();
  // Global, so that the engine's undefined symbols resolve by soname without a run path of its own.
  if (dlopen(libtorch.c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    return {"ERR_DIAD_LIBTORCH_NOT_FOUND", "LibTorch cannot be opened: " + last_dl_error()};
  }
  void* engine = dlopen(engine_path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (engine == nullptr) {
    return {"ERR_DIAD_LIBTORCH_MISMATCH", "The engine does not fit the LibTorch in " + libtorch_folder + ": " + last_dl_error()};
  }
  EngineApi api;
  if (!resolve_all(engine, api) || api.abi() != DIAD_ENGINE_ABI) {
    return {"ERR_DIAD_LIBTORCH_MISMATCH", "The engine library " + engine_path + " belongs to another version of diad"};
  }
  shared.api = api;
  shared.libtorch_folder = libtorch_folder;
  shared.engine_path = engine_path;
  shared.opened = true;
  return {};
}

const EngineApi* engine_api() { return library().opened ? &library().api : nullptr; }

}  // namespace diad_addon
