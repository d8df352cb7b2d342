// What belongs to one JavaScript environment (the main thread's or a worker's): the way back from native
// threads, and its engines.
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

// Teardown rules, each of which was a crash in some addon:
// 1. Native threads call JavaScript through one thread-safe function per environment, nothing else.
// 2. It is unreferenced while nothing is pending, so that an idle process ends by itself, and referenced
// while something is.
// 3. Before it goes, every engine of the environment is closed: no native thread may use it afterwards. The
// cleanup hook that does so is
//    registered after the thread-safe function was made, since hooks run in reverse order.
// 4. Hooks do not run on process.exit() or an uncaught throw: the JavaScript 'exit' event calls shutdown()
// instead. Both may happen.
// 5. A call that arrives after teardown is dropped with its data freed, never queued.
class Environment : public std::enable_shared_from_this<Environment> {
 public:
  // A task for the JavaScript thread. It is destroyed unrun when the environment goes first.
  using Task = std::function<void(Napi::Env)>;

  static std::shared_ptr<Environment> create(Napi::Env env);

  // Runs a task on the JavaScript thread, from any thread; dropped after teardown.
  void post(Task task);

  // Pending operations keep the process alive. JavaScript thread only.
  void begin_operation(Napi::Env env);
  void end_operation(Napi::Env env);

  void add(const std::shared_ptr<EngineHandle>& engine);
  void remove(const std::shared_ptr<EngineHandle>& engine);

  // Runs blocking work on a thread of its own: not on the event loop's, not in libuv's pool. False, and
  // `work` not run, where the system gives no thread.
  [[nodiscard]] bool run_in_background(std::function<void()> work);

  // Closes every engine and the way back. Blocks until the inference threads have come to the end of a layer
  // and background work has noticed (kLongestWait at most). Idempotent.
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
