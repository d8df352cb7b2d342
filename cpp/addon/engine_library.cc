#include "engine_library.h"

#include <atomic>
#include <cstdlib>
#include <mutex>

#include "dynamic_library.h"

namespace diad_addon {

namespace {

// Process-wide and never destroyed: native threads of several environments can read it while the process
// exits.
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

#if defined(_WIN32)
constexpr const char* kLibTorch = "torch.dll";
#elif defined(__APPLE__)
constexpr const char* kLibTorch = "libtorch.dylib";
#else
constexpr const char* kLibTorch = "libtorch.so";
#endif

bool exists(const std::string& file) {
  std::error_code ignored;
  return std::filesystem::exists(utf8_path(file), ignored);
}

template <typename Function>
bool resolve(void* handle, const char* name, Function& function) {
  function = reinterpret_cast<Function>(find_symbol(handle, name));
  return function != nullptr;
}

bool resolve_all(void* handle, EngineApi& api) {
  return resolve(handle, "diad_engine_abi", api.abi) && resolve(handle, "diad_engine_version", api.version) &&
         resolve(handle, "diad_engine_load", api.load) && resolve(handle, "diad_engine_info", api.info) &&
         resolve(handle, "diad_engine_submit", api.submit) &&
         resolve(handle, "diad_engine_cancel", api.cancel) &&
         resolve(handle, "diad_engine_stats", api.stats) && resolve(handle, "diad_engine_close", api.close) &&
         resolve(handle, "diad_engine_result_free", api.result_free) &&
         resolve(handle, "diad_engine_last_error", api.last_error) &&
         resolve(handle, "diad_calibrator_new", api.calibrator_new) &&
         resolve(handle, "diad_calibrator_finish", api.calibrator_finish) &&
         resolve(handle, "diad_calibration_free", api.calibration_free) &&
         resolve(handle, "diad_calibrator_free", api.calibrator_free);
}

}  // namespace

void bound_spinning() {
#if defined(_WIN32)
  if (std::getenv("OMP_WAIT_POLICY") == nullptr) _putenv_s("OMP_WAIT_POLICY", "PASSIVE");
#else
  if (std::getenv("OMP_WAIT_POLICY") == nullptr) setenv("GOMP_SPINCOUNT", "20000", /*overwrite=*/0);
#endif
}

CodedError open_engine_library(const std::string& libtorch_folder, const std::string& engine_path) {
  Library& shared = library();
  const std::lock_guard lock(shared.mutex);
  if (shared.opened) {
    if (shared.libtorch_folder == libtorch_folder && shared.engine_path == engine_path) return {};
    return {"ERR_DIAD_LIBTORCH_MISMATCH", "This process already runs LibTorch from " +
                                              shared.libtorch_folder + " and cannot open another from " +
                                              libtorch_folder + "; start a new process"};
  }
  const std::string libtorch = libtorch_folder + "/" + kLibTorch;
  if (!exists(libtorch)) return {"ERR_DIAD_LIBTORCH_NOT_FOUND", "There is no " + libtorch};
  if (!exists(engine_path))
    return {"ERR_DIAD_LIBTORCH_NOT_FOUND",
            "There is no engine library at " + engine_path + "; build it with `npm run build:native`"};
  // Global, so that the engine's undefined symbols resolve by soname and the engine needs no run path.
  std::string reason;
  if (open_library(libtorch, Visibility::kGlobal, reason) == nullptr) {
    return {"ERR_DIAD_LIBTORCH_NOT_FOUND", "LibTorch cannot be opened: " + reason};
  }
  void* engine = open_library(engine_path, Visibility::kLocal, reason);
  if (engine == nullptr) {
    return {"ERR_DIAD_LIBTORCH_MISMATCH",
            "The engine does not fit the LibTorch in " + libtorch_folder + ": " + reason};
  }
  EngineApi api;
  if (!resolve_all(engine, api) || api.abi() != DIAD_ENGINE_ABI) {
    return {"ERR_DIAD_LIBTORCH_MISMATCH",
            "The engine library " + engine_path + " belongs to another version of diad"};
  }
  shared.api = api;
  shared.libtorch_folder = libtorch_folder;
  shared.engine_path = engine_path;
  shared.opened = true;
  return {};
}

const EngineApi* engine_api() { return library().opened ? &library().api : nullptr; }

}  // namespace diad_addon
