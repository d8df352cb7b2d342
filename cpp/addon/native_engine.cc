#include "native_engine.h"

#include <cstring>

#include "calibration_call.h"
#include "promise.h"

namespace diad_addon {

namespace {

Napi::Value closed_error(Napi::Env env) { return make_error(env, "ERR_DIAD_CLOSED", "The model is closed"); }

// Frees a result when its task has run or is dropped.
using ResultPtr = std::shared_ptr<diad_result>;

Napi::Object convert_timings(Napi::Env env, const diad_timings& t) {
  Napi::Object timings = Napi::Object::New(env);
  const std::pair<const char*, double> entries[] = {
      {"queueMs", t.queue},     {"computeMs", t.compute}, {"resizeMs", t.resize},   {"encodeMs", t.encode},
      {"denoiseMs", t.denoise}, {"decodeMs", t.decode},   {"extractMs", t.extract}, {"mapMs", t.map}};
  for (const auto& [name, milliseconds] : entries) timings.Set(name, milliseconds);
  return timings;
}

Napi::Float32Array copy_floats(Napi::Env env, const float* values, size_t count) {
  Napi::Float32Array array = Napi::Float32Array::New(env, count);
  std::memcpy(array.Data(), values, count * sizeof(float));
  return array;
}

Napi::Object convert_result(Napi::Env env, const diad_result& result) {
  Napi::Object object = Napi::Object::New(env);
  const auto pixels = static_cast<size_t>(result.size) * static_cast<size_t>(result.size);
  object.Set("score", result.score);
  object.Set("size", result.size);
  object.Set("batchSize", result.batch_size);
  object.Set("timings", convert_timings(env, result.timings));
  if (result.has_evidence != 0) {
    Napi::Object evidence = Napi::Object::New(env);
    evidence.Set("reconstruction", result.evidence_reconstruction);
    evidence.Set("memory", result.evidence_memory);
    object.Set("evidence", evidence);
    if (*result.class_name != '\0') object.Set("className", result.class_name);
  }
  if (result.map != nullptr) object.Set("map", copy_floats(env, result.map, pixels));
  if (result.reconstruction != nullptr) {
    Napi::Uint8Array rgb = Napi::Uint8Array::New(env, pixels * 3);
    std::memcpy(rgb.Data(), result.reconstruction, pixels * 3);
    object.Set("reconstruction", rgb);
  }
  if (result.stage_count > 0) {
    Napi::Object stages = Napi::Object::New(env);
    for (int32_t i = 0; i < result.stage_count; ++i) {
      const diad_stage& stage = result.stages[i];
      Napi::Array shape = Napi::Array::New(env);
      size_t count = 1;
      for (int32_t d = 0; d < stage.dimensions; ++d) {
        shape.Set(static_cast<uint32_t>(d), static_cast<double>(stage.shape[d]));
        count *= static_cast<size_t>(stage.shape[d]);
      }
      Napi::Object entry = Napi::Object::New(env);
      entry.Set("shape", shape);
      entry.Set("data", copy_floats(env, stage.values, count));
      stages.Set(stage.name, entry);
    }
    object.Set("stages", stages);
  }
  return object;
}

// Context of a submitted image, passed through the engine; freed by `done`.
struct Pending {
  std::shared_ptr<Environment> environment;
  std::shared_ptr<Operation> operation;  // used and destroyed on the JavaScript thread only
  std::shared_ptr<Napi::FunctionReference> on_step;
  const EngineApi* api = nullptr;
};

void image_done(void* user, diad_result* raw) {
  const std::unique_ptr<Pending> pending(static_cast<Pending*>(user));
  ResultPtr result(raw, pending->api->result_free);
  pending->environment->post([operation = std::move(pending->operation),
                              on_step = std::move(pending->on_step),
                              result = std::move(result)](Napi::Env env) {
    if (result->error.code != nullptr) {
      operation->reject(env, result->error.code, result->error.message);
      return;
    }
    try {
      operation->resolve(env, convert_result(env, *result));
    } catch (const Napi::Error&) {  // V8 cannot allocate map or reconstruction
      operation->reject(env, "ERR_DIAD_OUT_OF_MEMORY", "There is not enough memory to return the result");
    }
  });
}

void image_step(void* user, int32_t step, int32_t total) {
  const auto* pending = static_cast<Pending*>(user);
  pending->environment->post([on_step = pending->on_step, step, total](Napi::Env env) {
    on_step->Call({Napi::Number::New(env, step), Napi::Number::New(env, total)});
  });
}

// Keeps a function for later calls. A reference can be deleted only on its own thread. If it is released on
// another thread, which happens only after teardown, it is left to the environment's cleanup.
std::shared_ptr<Napi::FunctionReference> hold(Napi::Function function,
                                              const std::shared_ptr<Environment>& environment) {
  return {new Napi::FunctionReference(Napi::Persistent(function)),
          [environment](Napi::FunctionReference* reference) {
            if (!environment->on_javascript_thread()) reference->SuppressDestruct();
            delete reference;
          }};
}

// Reads a frame object; returns false if its data does not match its dimensions.
bool read_frame(const Napi::Object& frame, diad_request& request) {
  const Napi::Value data = frame.Get("data");
  if (!data.IsTypedArray() || data.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) return false;
  const auto bytes = data.As<Napi::Uint8Array>();
  request.pixels = bytes.Data();
  request.width = frame.Get("width").ToNumber().Uint32Value();
  request.height = frame.Get("height").ToNumber().Uint32Value();
  request.channels = frame.Get("channels").ToNumber().Uint32Value();
  return static_cast<uint64_t>(request.width) * request.height * request.channels == bytes.ElementLength();
}

}  // namespace

Napi::Function NativeEngine::define(Napi::Env env) {
  return DefineClass(
      env, "NativeEngine",
      {InstanceMethod<&NativeEngine::info>("info"), InstanceMethod<&NativeEngine::stats>("stats"),
       InstanceMethod<&NativeEngine::submit>("submit"), InstanceMethod<&NativeEngine::cancel>("cancel"),
       InstanceMethod<&NativeEngine::close>("close"),
       InstanceMethod<&NativeEngine::create_calibrator>("createCalibrator"),
       InstanceMethod<&NativeEngine::finish_calibrator>("finishCalibrator"),
       InstanceMethod<&NativeEngine::drop_calibrator>("dropCalibrator")});
}

NativeEngine::NativeEngine(const Napi::CallbackInfo& info) : Napi::ObjectWrap<NativeEngine>(info) {}

void NativeEngine::attach(std::shared_ptr<Environment> environment, std::shared_ptr<EngineHandle> engine) {
  environment_ = std::move(environment);
  engine_ = std::move(engine);
  engine_->with([this](const EngineApi& api, diad_engine* handle) { info_ = api.info(handle); });
}

EngineHandle& NativeEngine::engine(Napi::Env env) const {
  if (!engine_) throw Napi::TypeError::New(env, "This object was not made by load()");
  return *engine_;
}

Napi::Value NativeEngine::info(const Napi::CallbackInfo& info) {
  return Napi::String::New(info.Env(), info_);
}

Napi::Value NativeEngine::stats(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  diad_stats s{};
  if (!engine(info.Env()).with([&s](const EngineApi& api, diad_engine* handle) { api.stats(handle, &s); })) {
    throw Napi::Error(env, closed_error(env));
  }
  const auto distribution = [env](double p50, double p99, double mean) {
    Napi::Object object = Napi::Object::New(env);
    object.Set("p50", p50);
    object.Set("p99", p99);
    object.Set("mean", mean);
    return object;
  };
  Napi::Object stats = Napi::Object::New(env);
  const std::pair<const char*, uint64_t> counters[] = {{"queued", s.queued},       {"running", s.running},
                                                       {"completed", s.completed}, {"failed", s.failed},
                                                       {"cancelled", s.cancelled}, {"batches", s.batches}};
  for (const auto& [name, value] : counters) stats.Set(name, static_cast<double>(value));
  stats.Set("meanBatch", s.mean_batch);
  stats.Set("queueMs", distribution(s.queue_ms_p50, s.queue_ms_p99, s.queue_ms_mean));
  stats.Set("computeMs", distribution(s.compute_ms_p50, s.compute_ms_p99, s.compute_ms_mean));
  return stats;
}

Napi::Value NativeEngine::submit(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  EngineHandle& model = engine(env);
  diad_request request{};
  if (!read_frame(info[0].As<Napi::Object>(), request)) {
    throw Napi::Error(env, make_error(env, "ERR_DIAD_INVALID_ARGUMENT",
                                      "Expected a Uint8Array of width x height x channels bytes for data"));
  }
  const Napi::Object options = info[1].As<Napi::Object>();
  bool lossless = false;
  request.seed = options.Get("seed").As<Napi::BigInt>().Uint64Value(&lossless);
  request.timeout_ms = options.Get("timeoutMs").ToNumber().Int64Value();
  request.priority = options.Get("priority").ToNumber().Int64Value();
  request.want_map = options.Get("map").ToBoolean() ? 1 : 0;
  request.want_reconstruction = options.Get("reconstruction").ToBoolean() ? 1 : 0;
  request.want_stages = options.Get("stages").ToBoolean() ? 1 : 0;
  const Napi::Value name = options.Get("className");
  const std::string class_name = name.IsString() ? name.ToString().Utf8Value() : "";
  request.class_name = class_name.c_str();
  std::shared_ptr<CalibratorHandle> sink;  // until the engine holds its own reference
  if (options.Get("calibration").IsObject()) {
    const Napi::Object calibration = options.Get("calibration").As<Napi::Object>();
    sink = calibrator(env, calibration.Get("calibrator"));
    request.calibrator = sink->get();
    request.image_index = calibration.Get("index").ToNumber().Int64Value();
    request.in_memory = calibration.Get("inMemory").ToBoolean() ? 1 : 0;
    request.in_statistics = calibration.Get("inStatistics").ToBoolean() ? 1 : 0;
  }

  auto pending = std::make_unique<Pending>();
  pending->environment = environment_;
  pending->operation = std::make_shared<Operation>(env, environment_);
  if (info[2].IsFunction()) {
    pending->on_step = hold(info[2].As<Napi::Function>(), environment_);
    request.on_step = &image_step;
  }
  const std::shared_ptr<Operation> operation = pending->operation;
  request.user = pending.get();
  request.done = &image_done;

  uint64_t id = 0;
  const bool open = model.with([&](const EngineApi& api, diad_engine* handle) {
    pending->api = &api;
    Pending* handed_over = pending.release();
    if (api.submit(handle, &request, &id) == 0) return;
    delete handed_over;
    const diad_error error = api.last_error();
    operation->reject(env, error.code, error.message);
  });
  if (!open) operation->reject(env, "ERR_DIAD_CLOSED", "The model is closed");

  Napi::Object submitted = Napi::Object::New(env);
  submitted.Set("id", static_cast<double>(id));
  submitted.Set("result", operation->promise());
  return submitted;
}

Napi::Value NativeEngine::cancel(const Napi::CallbackInfo& info) {
  const auto id = static_cast<uint64_t>(info[0].ToNumber().Int64Value());
  int32_t cancelled = 0;
  engine(info.Env()).with([&](const EngineApi& api, diad_engine* handle) {
    cancelled = api.cancel(handle, id);
  });
  return Napi::Boolean::New(info.Env(), cancelled != 0);
}

Napi::Value NativeEngine::create_calibrator(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  std::shared_ptr<CalibratorHandle> created;
  Napi::Value error = closed_error(env);
  engine(env).with([&](const EngineApi& api, diad_engine* handle) {
    diad_calibrator* raw = nullptr;
    if (api.calibrator_new(handle, &raw) == 0) {
      created = std::make_shared<CalibratorHandle>(api, raw);
    } else {
      const diad_error why = api.last_error();
      error = make_error(env, why.code, why.message);
    }
  });
  if (!created) throw Napi::Error(env, error);
  calibrators_.emplace(next_calibrator_, std::move(created));
  return Napi::Number::New(env, next_calibrator_++);
}

std::shared_ptr<CalibratorHandle> NativeEngine::calibrator(Napi::Env env, const Napi::Value& id) const {
  const auto found = calibrators_.find(id.ToNumber().Uint32Value());
  if (found != calibrators_.end()) return found->second;
  throw Napi::Error(env, make_error(env, "ERR_DIAD_INVALID_ARGUMENT",
                                    "Expected a calibrator of this model that was not dropped"));
}

Napi::Value NativeEngine::finish_calibrator(const Napi::CallbackInfo& info) {
  return finish_calibration(info.Env(), environment_, calibrator(info.Env(), info[0]));
}

Napi::Value NativeEngine::drop_calibrator(const Napi::CallbackInfo& info) {
  const auto found = calibrators_.find(info[0].ToNumber().Uint32Value());
  if (found != calibrators_.end()) {
    found->second->drop();
    calibrators_.erase(found);
  }
  return info.Env().Undefined();
}

Napi::Value NativeEngine::close(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  static_cast<void>(engine(env));
  calibrators_.clear();  // a calibrator that is being finished keeps its own reference
  auto operation = std::make_shared<Operation>(env, environment_);
  const Napi::Promise promise = operation->promise();
  // Closing waits for the end of a layer, so it runs on another thread. The environment's shutdown can close
  // the engine concurrently.
  const bool started =
      environment_->run_in_background([environment = environment_, engine = engine_, operation]() mutable {
        engine->close();
        environment->remove(engine);
        environment->post([operation = std::move(operation)](Napi::Env loop) {
          operation->resolve(loop, loop.Undefined());
        });
      });
  if (!started) {  // close here: blocking for a layer is better than leaking the engine
    engine_->close();
    environment_->remove(engine_);
    operation->resolve(env, env.Undefined());
  }
  return promise;
}

}  // namespace diad_addon
