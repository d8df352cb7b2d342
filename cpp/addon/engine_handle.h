// One loaded engine of an environment, closed exactly once from whichever side comes first.
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

  // Calls `use(api, engine)` while the engine is open; false when it is closed. Any thread.
  template <typename Use>
  bool with(Use&& use) {
    const std::shared_lock lock(mutex_);
    if (engine_ == nullptr) return false;
    use(api_, engine_);
    return true;
  }

  // Completes what is pending and releases the engine; blocks until its thread has come to the end of a
  // layer.
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
