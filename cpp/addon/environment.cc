#include "environment.h"

#include <chrono>
#include <system_error>

#include "engine_handle.h"

namespace diad_addon {

namespace {

constexpr std::chrono::seconds kLongestWait{10};  // for background work during shutdown

}  // namespace

std::shared_ptr<Environment> Environment::create(Napi::Env env) {
  auto created = std::make_shared<Environment>();
  napi_value name = Napi::String::New(env, "diad");
  // The context keeps the environment alive until the function's finalizer runs.
  auto* context = new std::shared_ptr<Environment>(created);
  const auto finalize = [](napi_env, void* data, void*) {
    delete static_cast<std::shared_ptr<Environment>*>(data);
  };
  const napi_status made = napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, context,
                                                           finalize, context, &call_js, &created->function_);
  if (made != napi_ok) {
    delete context;
    throw Napi::Error::New(env, "The addon cannot reach this environment's event loop");
  }
  napi_unref_threadsafe_function(env, created->function_);
  env.AddCleanupHook([weak = std::weak_ptr<Environment>(created)] {
    if (const auto alive = weak.lock()) alive->shutdown();
  });
  return created;
}

void Environment::call_js(napi_env env, napi_value /*callback*/, void* /*context*/, void* data) {
  const std::unique_ptr<Task> task(static_cast<Task*>(data));
  if (env == nullptr) return;  // rule 5
  const Napi::HandleScope scope(env);
  try {
    (*task)(env);
  } catch (const Napi::Error& error) {
    // A terminating worker rejects every call, including this one. Its promises are never observed.
    error.ThrowAsJavaScriptException();
  } catch (const std::exception& error) {
    Napi::Error::New(env, error.what()).ThrowAsJavaScriptException();
  }
}

void Environment::post(Task task) {
  auto owned = std::make_unique<Task>(std::move(task));
  const std::lock_guard lock(mutex_);
  if (function_ == nullptr) return;
  if (napi_call_threadsafe_function(function_, owned.get(), napi_tsfn_nonblocking) == napi_ok)
    owned.release();
}

void Environment::begin_operation(Napi::Env env) {
  const std::lock_guard lock(mutex_);
  if (operations_++ == 0 && function_ != nullptr) napi_ref_threadsafe_function(env, function_);
}

void Environment::end_operation(Napi::Env env) {
  const std::lock_guard lock(mutex_);
  if (--operations_ == 0 && function_ != nullptr) napi_unref_threadsafe_function(env, function_);
}

void Environment::add(const std::shared_ptr<EngineHandle>& engine) {
  const std::lock_guard lock(mutex_);
  engines_.insert(engine);
}

void Environment::remove(const std::shared_ptr<EngineHandle>& engine) {
  const std::lock_guard lock(mutex_);
  engines_.erase(engine);
}

bool Environment::run_in_background(std::function<void()> work) {
  {
    const std::lock_guard lock(mutex_);
    ++background_;
  }
  try {
    std::thread([self = shared_from_this(), work = std::move(work)]() mutable {
      work();
      work = nullptr;  // destroys its captures before the end is signaled
      self->background_over();
    }).detach();
    return true;
  } catch (const std::exception&) {  // no thread, or out of memory
    background_over();
    return false;
  }
}

void Environment::background_over() {
  const std::lock_guard lock(mutex_);
  --background_;
  background_ended_.notify_all();
}

bool Environment::closed() {
  const std::lock_guard lock(mutex_);
  return closed_;
}

void Environment::shutdown() {
  std::set<std::shared_ptr<EngineHandle>> engines;
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    engines.swap(engines_);
  }
  for (const auto& engine : engines) engine->close();
  std::unique_lock lock(mutex_);
  background_ended_.wait_for(lock, kLongestWait, [this] { return background_ == 0; });
  if (function_ != nullptr) napi_release_threadsafe_function(function_, napi_tsfn_abort);
  function_ = nullptr;
}

}  // namespace diad_addon
