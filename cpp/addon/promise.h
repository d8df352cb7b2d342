// Promises that native threads settle, and errors with codes.
#pragma once

#include <napi.h>

#include <functional>
#include <memory>
#include <string>

#include "environment.h"

namespace diad_addon {

// Creates an Error with a string `code`.
inline Napi::Value make_error(Napi::Env env, const std::string& code, const std::string& message) {
  Napi::Error error = Napi::Error::New(env, message);
  error.Set("code", Napi::String::New(env, code));
  return error.Value();
}

// Message of an operation for which no thread could be created.
inline constexpr const char* kNoThread =
    "Could not create a thread: process limit reached; lower the load or raise the limit";

// A deferred promise that keeps the process alive until it is settled.
class Operation {
 public:
  Operation(Napi::Env env, std::shared_ptr<Environment> environment)
      : deferred_(Napi::Promise::Deferred::New(env)), environment_(std::move(environment)) {
    environment_->begin_operation(env);
  }

  [[nodiscard]] Napi::Promise promise() const { return deferred_.Promise(); }

  // JavaScript thread only. Only the first call has an effect.
  void resolve(Napi::Env env, Napi::Value value) {
    if (settle(env)) deferred_.Resolve(value);
  }
  void reject(Napi::Env env, const std::string& code, const std::string& message) {
    if (settle(env)) deferred_.Reject(make_error(env, code, message));
  }

 private:
  bool settle(Napi::Env env) {
    if (settled_) return false;
    settled_ = true;
    environment_->end_operation(env);
    return true;
  }

  Napi::Promise::Deferred deferred_;
  std::shared_ptr<Environment> environment_;
  bool settled_ = false;
};

}  // namespace diad_addon
