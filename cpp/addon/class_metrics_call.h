// The addon's classMetrics: metrics of one class, computed on a background thread.
#pragma once

#include <napi.h>

#include <memory>

#include "environment.h"

namespace diad_addon {

// classMetrics(request): Promise<metrics>. The request's arrays are read in place, not copied: they are kept
// alive, and must be neither changed nor transferred until the promise is settled. Rejects
// ERR_DIAD_INVALID_ARGUMENT, ERR_DIAD_OUT_OF_MEMORY, ERR_DIAD_CLOSED.
Napi::Value class_metrics_call(const Napi::CallbackInfo& info,
                               const std::shared_ptr<Environment>& environment);

}  // namespace diad_addon
