// State of one JavaScript environment (main thread or worker): the channel from native threads to JavaScript,
// and the environment's engines.
#pragma once

#include <napi.h>

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <thread>

#include "engine_library.h"

namespace diad_addon {

class EngineHandle;

// Teardown rules; each prevents a crash that addons are known for:
// 1. Native threads call JavaScript only through one thread-safe function per environment.
// 2. The function is referenced only while operations are pending, so that an idle process can exit.
// 3. All engines of the environment are closed before the function is released, so that no native thread uses
// it afterwards. The cleanup hook that does this is registered after the function is created, because hooks
// run in reverse order.
// 4. Hooks do not run on process.exit() or an uncaught exception: the JavaScript 'exit' event calls
// shutdown() instead. Both can happen.
// 5. A call that arrives after teardown is dropped and its data freed; it is never queued.
class Environment : public std::enable_shared_from_this<Environment> {
 public:
  // A task for the JavaScript thread. It is destroyed without running if the environment ends first.
  using Task = std::function<void(Napi::Env)>;

  static std::shared_ptr<Environment> create(Napi::Env env);

  // Runs a task on the JavaScript thread. Can be called from any thread; dropped after teardown.
  void post(Task task);

  // Pending operations keep the process alive. JavaScript thread only.
  void begin_operation(Napi::Env env);
  void end_operation(Napi::Env env);

  void add(const std::shared_ptr<EngineHandle>& engine);
  void remove(const std::shared_ptr<EngineHandle>& engine);

  // Runs blocking work on a separate thread, not on the event loop or in libuv's pool. Returns false without
  // running `work` if no thread can be created.
  [[nodiscard]] bool run_in_background(std::function<void()> work);

  // Closes all engines and the thread-safe function. Blocks until the inference threads finish their current
  // layer and background work ends (at most kLongestWait). Idempotent.
  void shutdown();

  [[nodiscard]] bool on_javascript_thread() const { return std::this_thread::get_id() == thread_; }

  [[nodiscard]] bool closed();

 private:
  void background_over();
  static void call_js(napi_env env, napi_value callback, void* context, void* data);

  const std::thread::id thread_ = std::this_thread::get_id();
  std::mutex mutex_;
  std::condition_variable background_ended_;
  int background_ = 0;                               // guarded by mutex_
  napi_threadsafe_function function_ = nullptr;      // guarded by mutex_; nullptr after teardown
  bool closed_ = false;                              // guarded by mutex_
  int operations_ = 0;                               // JavaScript thread only
  std::set<std::shared_ptr<EngineHandle>> engines_;  // guarded by mutex_
};

}  // namespace diad_addon
