// The addon's classMetrics: computes the metrics of one class on a background thread.
#pragma once

#include <napi.h>

#include <memory>

#include "environment.h"

namespace diad_addon {

// classMetrics(request): Promise<metrics>. The request's arrays are copied before the call returns. Rejects
// with ERR_DIAD_INVALID_ARGUMENT, ERR_DIAD_OUT_OF_MEMORY or ERR_DIAD_CLOSED.
Napi::Value class_metrics_call(const Napi::CallbackInfo& info,
                               const std::shared_ptr<Environment>& environment);

}  // namespace diad_addon
