// Thread pool with work stealing.
//
// Replaces OpenMP, whose static schedule stalls on the slowest thread: a thread that lost its core to another
// process would delay each of a thousand loops per image.
#pragma once

#include <cstdint>
#include <memory>

namespace diad {

class PoolState;

class ThreadPool {
 public:
  // Starts `count` threads, or fewer if the system cannot create more.
  explicit ThreadPool(int count);
  ~ThreadPool();  // joins the threads; no loop may be running
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  [[nodiscard]] int count() const;

 private:
  friend class ThreadPoolScope;
  std::unique_ptr<PoolState> pool_;
};

// While a scope exists, the workers share in the loops of its thread. A pool serves one thread at a time.
class ThreadPoolScope {
 public:
  explicit ThreadPoolScope(ThreadPool& pool);
  ~ThreadPoolScope();
  ThreadPoolScope(const ThreadPoolScope&) = delete;
  ThreadPoolScope& operator=(const ThreadPoolScope&) = delete;

 private:
  PoolState* before_;
};

// Type-erased loop body over pieces of [0, count). A pointer suffices because it runs before run_loop
// returns.
struct LoopBody {
  void (*call)(const void* body, int64_t begin, int64_t end);
  const void* body;
};
void run_loop(int64_t count, int64_t grain, LoopBody body);

// Calls body(begin, end) for pieces that cover [0, count), in any order, on this thread and its workers. Each
// further `grain` iterations justify another thread. The assignment of pieces is nondeterministic, so the
// result of a piece must not depend on other pieces. Rethrows the first exception of the body.
template <typename Body>
void parallel_for(int64_t count, int64_t grain, const Body& body) {
  run_loop(count, grain,
           {[](const void* it, int64_t begin, int64_t end) { (*static_cast<const Body*>(it))(begin, end); },
            &body});
}

}  // namespace diad
