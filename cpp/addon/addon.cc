// Entry point of the addon: opens LibTorch and the engine, loads bundles. Links neither, so that the addon
// itself always loads.
#include <napi.h>

#include <memory>
#include <string>
#include <vector>

#include "allocator.h"
#include "class_metrics_call.h"
#include "native_engine.h"
#include "promise.h"

namespace diad_addon {

namespace {

struct LoadRequest {
  std::string bundle, device, precision, normality;
  std::vector<int32_t> preferred_batches;
  diad_load_options options{};
};

LoadRequest read_load_request(const Napi::CallbackInfo& info) {
  LoadRequest request;
  const Napi::Object options = info[1].As<Napi::Object>();
  const auto integer = [&options](const char* name) { return options.Get(name).ToNumber().Int32Value(); };
  request.bundle = info[0].ToString();
  request.device = options.Get("device").ToString();
  request.precision = options.Get("precision").ToString();
  const Napi::Value normality = options.Get("normality");
  if (normality.IsString()) request.normality = normality.ToString();
  request.options.threads = integer("threads");
  request.options.max_batch = integer("maxBatch");
  request.options.max_delay_ms = integer("maxDelayMs");
  request.options.queue_limit = integer("queueLimit");
  const auto sizes = options.Get("preferredBatches").As<Napi::Array>();
  for (uint32_t i = 0; i < sizes.Length(); ++i)
    request.preferred_batches.push_back(sizes.Get(i).ToNumber().Int32Value());
  request.options.verify = options.Get("verify").ToBoolean() ? 1 : 0;
  request.options.warmup = options.Get("warmup").ToBoolean() ? 1 : 0;
  return request;
}

}  // namespace

class DiadAddon : public Napi::Addon<DiadAddon> {
 public:
  DiadAddon(Napi::Env env, Napi::Object exports) : environment_(Environment::create(env)) {
    engine_class_ = Napi::Persistent(NativeEngine::define(env));
    DefineAddon(exports, {InstanceMethod("open", &DiadAddon::open), InstanceMethod("load", &DiadAddon::load),
                          InstanceMethod("classMetrics", &DiadAddon::class_metrics),
                          InstanceMethod("tuneAllocator", &DiadAddon::tune),
                          InstanceMethod("shutdown", &DiadAddon::shutdown)});
  }

 private:
  // open(libtorchFolder, enginePath): Promise<EngineVersion>.
  Napi::Value open(const Napi::CallbackInfo& info) {
    // Conversions can throw, so they come first: a started operation keeps the process alive until it ends.
    std::string libtorch = info[0].ToString(), engine = info[1].ToString();
    bound_spinning();
    auto operation = std::make_shared<Operation>(info.Env(), environment_);
    const Napi::Promise promise = operation->promise();
    if (environment_->closed()) {
      operation->reject(info.Env(), "ERR_DIAD_CLOSED", "diad was shut down in this environment");
      return promise;
    }
    // The dynamic loader can take a second: run it on a separate thread, not on the event loop or libuv's
    // pool.
    const bool started = environment_->run_in_background([environment = environment_, operation,
                                                          libtorch = std::move(libtorch),
                                                          engine = std::move(engine)]() mutable {
      CodedError error = open_engine_library(libtorch, engine);
      const char* version = error.code.empty() ? engine_api()->version() : nullptr;
      if (error.code.empty() && version == nullptr)
        error = {"ERR_DIAD_INTERNAL", engine_api()->last_error().message};
      environment->post([operation = std::move(operation), error,
                         text = std::string(version == nullptr ? "" : version)](Napi::Env env) {
        if (error.code.empty()) {
          const Napi::Object json = env.Global().Get("JSON").As<Napi::Object>();
          operation->resolve(
              env, json.Get("parse").As<Napi::Function>().Call(json, {Napi::String::New(env, text)}));
        } else {
          operation->reject(env, error.code, error.message);
        }
      });
    });
    if (!started) operation->reject(info.Env(), "ERR_DIAD_OUT_OF_MEMORY", kNoThread);
    return promise;
  }

  // load(bundle, options): Promise<NativeEngine>.
  Napi::Value load(const Napi::CallbackInfo& info) {
    LoadRequest given = read_load_request(info);
    auto operation = std::make_shared<Operation>(info.Env(), environment_);
    const Napi::Promise promise = operation->promise();
    const EngineApi* api = engine_api();
    if (environment_->closed() || api == nullptr) {
      operation->reject(info.Env(), "ERR_DIAD_CLOSED", "diad is not open in this environment");
      return promise;
    }
    const bool started = environment_->run_in_background(
        [this, api, environment = environment_, operation, request = std::move(given)]() mutable {
          request.options.device = request.device.c_str();
          request.options.preferred_batches = request.preferred_batches.data();
          request.options.preferred_count = static_cast<int32_t>(request.preferred_batches.size());
          request.options.precision = request.precision.c_str();
          request.options.normality = request.normality.empty() ? nullptr : request.normality.c_str();
          request.options.is_cancelled = [](void* user) {
            return static_cast<Environment*>(user)->closed() ? 1 : 0;
          };
          request.options.user = environment.get();
          diad_engine* engine = nullptr;
          if (api->load(request.bundle.c_str(), &request.options, &engine) != 0) {
            const diad_error error = api->last_error();
            environment->post([operation = std::move(operation), code = std::string(error.code),
                               message = std::string(error.message)](Napi::Env env) {
              operation->reject(env, code, message);
            });
            return;
          }
          auto handle = std::make_shared<EngineHandle>(*api, engine);
          environment->add(handle);
          if (environment->closed()) {  // shut down while loading: no JavaScript object will own it
            environment->remove(handle);
            return;
          }
          // `this` lives as long as the environment, and the task runs on the environment's thread.
          environment->post([this, operation = std::move(operation), handle](Napi::Env env) {
            const Napi::Object object = engine_class_.New({});
            NativeEngine::Unwrap(object)->attach(environment_, handle);
            operation->resolve(env, object);
          });
        });
    if (!started) operation->reject(info.Env(), "ERR_DIAD_OUT_OF_MEMORY", kNoThread);
    return promise;
  }

  // classMetrics(request): Promise<metrics>; needs neither LibTorch nor an engine.
  Napi::Value class_metrics(const Napi::CallbackInfo& info) { return class_metrics_call(info, environment_); }

  // tuneAllocator(): boolean; affects the whole process.
  Napi::Value tune(const Napi::CallbackInfo& info) {
    return Napi::Boolean::New(info.Env(), tune_allocator());
  }

  // shutdown(): void; stops and joins all native threads of this environment.
  Napi::Value shutdown(const Napi::CallbackInfo& info) {
    environment_->shutdown();
    return info.Env().Undefined();
  }

  std::shared_ptr<Environment> environment_;
  Napi::FunctionReference engine_class_;
};

}  // namespace diad_addon

using diad_addon::DiadAddon;
NODE_API_ADDON(DiadAddon)
