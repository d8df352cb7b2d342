#include "calibration_call.h"

#include <cstring>
#include <string>
#include <utility>

#include "promise.h"

namespace diad_addon {

namespace {

Napi::Object convert_scores(Napi::Env env, const diad_unseen_scores& scores) {
  const auto count = static_cast<size_t>(scores.count);
  Napi::Object object = Napi::Object::New(env);
  Napi::Uint32Array indices = Napi::Uint32Array::New(env, count);
  for (size_t i = 0; i < count; ++i) indices[i] = scores.indices[i];
  object.Set("indices", indices);
  const std::pair<const char*, const double*> columns[] = {{"scores", scores.scores},
                                                           {"reconstruction", scores.reconstruction},
                                                           {"memory", scores.memory},
                                                           {"peaks", scores.peaks}};
  for (const auto& [name, values] : columns) {
    Napi::Float64Array array = Napi::Float64Array::New(env, count);
    for (size_t i = 0; i < count; ++i) array[i] = values[i];
    object.Set(name, array);
  }
  return object;
}

Napi::Object convert_calibration(Napi::Env env, const diad_calibration& calibration) {
  Napi::Object object = Napi::Object::New(env);
  Napi::Uint8Array bytes = Napi::Uint8Array::New(env, calibration.normality_size);
  std::memcpy(bytes.Data(), calibration.normality, calibration.normality_size);
  object.Set("normality", bytes);
  object.Set("images", convert_scores(env, calibration.images));
  return object;
}

// Sources that can cancel the computation.
struct CancelSources {
  Environment& environment;
  const CalibratorHandle& calibrator;
};

int32_t is_cancelled(void* user) {
  const auto& sources = *static_cast<const CancelSources*>(user);
  return sources.calibrator.dropped() || sources.environment.closed() ? 1 : 0;
}

}  // namespace

Napi::Value finish_calibration(Napi::Env env, const std::shared_ptr<Environment>& environment,
                               const std::shared_ptr<CalibratorHandle>& calibrator) {
  auto operation = std::make_shared<Operation>(env, environment);
  const Napi::Promise promise = operation->promise();
  if (environment->closed()) {
    operation->reject(env, "ERR_DIAD_CLOSED", "diad was shut down in this environment");
    return promise;
  }
  const bool started = environment->run_in_background([environment, operation, calibrator]() mutable {
    const EngineApi& api = calibrator->api();
    CancelSources sources{*environment, *calibrator};
    diad_calibration* raw = nullptr;
    if (api.calibrator_finish(calibrator->get(), &is_cancelled, &sources, &raw) != 0) {
      const diad_error error = api.last_error();
      std::pair<std::string, std::string> why{error.code, error.message};
      if (calibrator->dropped()) why = {"ERR_DIAD_CANCELLED", "The calibrator was dropped"};
      environment->post([operation = std::move(operation), why = std::move(why)](Napi::Env loop) {
        operation->reject(loop, why.first, why.second);
      });
      return;
    }
    environment->post([operation = std::move(operation),
                       found = std::shared_ptr<diad_calibration>(raw, api.calibration_free)](Napi::Env loop) {
      try {
        operation->resolve(loop, convert_calibration(loop, *found));
      } catch (const Napi::Error&) {  // V8 cannot allocate the arrays
        operation->reject(loop, "ERR_DIAD_OUT_OF_MEMORY",
                          "There is not enough memory to return the calibration");
      }
    });
  });
  if (!started) operation->reject(env, "ERR_DIAD_OUT_OF_MEMORY", kNoThread);
  return promise;
}

}  // namespace diad_addon
