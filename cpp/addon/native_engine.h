// The JavaScript object of a loaded engine: converts arguments and settles promises.
#pragma once

#include <napi.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "calibrator_handle.h"
#include "engine_handle.h"
#include "environment.h"

namespace diad_addon {

class NativeEngine : public Napi::ObjectWrap<NativeEngine> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit NativeEngine(const Napi::CallbackInfo& info);

  // Attaches an engine to a newly constructed object.
  void attach(std::shared_ptr<Environment> environment, std::shared_ptr<EngineHandle> engine);

 private:
  Napi::Value info(const Napi::CallbackInfo& info);
  Napi::Value stats(const Napi::CallbackInfo& info);
  Napi::Value submit(const Napi::CallbackInfo& info);
  Napi::Value cancel(const Napi::CallbackInfo& info);
  Napi::Value close(const Napi::CallbackInfo& info);
  Napi::Value create_calibrator(const Napi::CallbackInfo& info);
  Napi::Value finish_calibrator(const Napi::CallbackInfo& info);
  Napi::Value drop_calibrator(const Napi::CallbackInfo& info);

  // Throws a TypeError for an object without an attached engine.
  [[nodiscard]] EngineHandle& engine(Napi::Env env) const;
  // Throws ERR_DIAD_INVALID_ARGUMENT for an unknown or dropped id.
  [[nodiscard]] std::shared_ptr<CalibratorHandle> calibrator(Napi::Env env, const Napi::Value& id) const;

  std::shared_ptr<Environment> environment_;
  std::shared_ptr<EngineHandle> engine_;
  std::string info_;
  std::map<uint32_t, std::shared_ptr<CalibratorHandle>> calibrators_;
  uint32_t next_calibrator_ = 1;
};

}  // namespace diad_addon
