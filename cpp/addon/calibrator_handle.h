// Shared handle of an engine calibrator, freed with its last owner.
#pragma once

#include <atomic>

#include "engine_library.h"

namespace diad_addon {

class CalibratorHandle {
 public:
  CalibratorHandle(const EngineApi& api, diad_calibrator* calibrator) : api_(api), calibrator_(calibrator) {}
  CalibratorHandle(const CalibratorHandle&) = delete;
  CalibratorHandle& operator=(const CalibratorHandle&) = delete;
  ~CalibratorHandle() { api_.calibrator_free(calibrator_); }

  [[nodiscard]] const EngineApi& api() const { return api_; }
  [[nodiscard]] diad_calibrator* get() const { return calibrator_; }

  // Cancels a running computation of the result.
  void drop() { dropped_ = true; }
  [[nodiscard]] bool dropped() const { return dropped_; }

 private:
  const EngineApi& api_;
  diad_calibrator* const calibrator_;
  std::atomic<bool> dropped_{false};
};

}  // namespace diad_addon
