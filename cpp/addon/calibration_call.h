// Computes the result of a calibration on a background thread.
#pragma once

#include <napi.h>

#include <memory>

#include "calibrator_handle.h"
#include "environment.h"

namespace diad_addon {

// Returns a promise of { normality: Uint8Array, images: { indices: Uint32Array, scores, reconstruction,
// memory, peaks: Float64Array } }.
[[nodiscard]] Napi::Value finish_calibration(Napi::Env env, const std::shared_ptr<Environment>& environment,
                                             const std::shared_ptr<CalibratorHandle>& calibrator);

}  // namespace diad_addon
