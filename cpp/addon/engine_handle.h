// A loaded engine of an environment, closed exactly once by any of its owners.
#pragma once

#include <mutex>
#include <shared_mutex>

#include "engine_library.h"

namespace diad_addon {

class EngineHandle {
 public:
  EngineHandle(const EngineApi& api, diad_engine* engine) : api_(api), engine_(engine) {}
  EngineHandle(const EngineHandle&) = delete;
  EngineHandle& operator=(const EngineHandle&) = delete;
  ~EngineHandle() { close(); }

  // Calls `use(api, engine)` while the engine is open; returns false if it is closed. Any thread.
  template <typename Use>
  bool with(Use&& use) {
    const std::shared_lock lock(mutex_);
    if (engine_ == nullptr) return false;
    use(api_, engine_);
    return true;
  }

  // Completes pending requests and releases the engine. Blocks until its thread finishes the current layer.
  void close() {
    diad_engine* engine = nullptr;
    {
      const std::unique_lock lock(mutex_);
      std::swap(engine, engine_);
    }
    if (engine != nullptr) api_.close(engine);
  }

 private:
  const EngineApi& api_;
  std::shared_mutex mutex_;
  diad_engine* engine_;  // nullptr: closed
};

}  // namespace diad_addon
