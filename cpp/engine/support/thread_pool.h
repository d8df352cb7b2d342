// Threads that share in a thread's loops.
//
// Instead of OpenMP's: there the work is divided beforehand and everybody waits for the last thread, so that
// one which has lost its core to another program holds up all others, at each of a thousand loops an image.
// Here whoever has time takes the next piece.
#pragma once

#include <cstdint>
#include <memory>

namespace diad {

class PoolState;

class ThreadPool {
 public:
  // Starts `count` threads, fewer where the system has no more.
  explicit ThreadPool(int count);
  ~ThreadPool();  // ends them; no loop may be running
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  [[nodiscard]] int count() const;

 private:
  friend class ThreadPoolScope;
  std::unique_ptr<PoolState> pool_;
};

// While one lives, the workers share in this thread's loops; in those of one thread at a time.
class ThreadPoolScope {
 public:
  explicit ThreadPoolScope(ThreadPool& pool);
  ~ThreadPoolScope();
  ThreadPoolScope(const ThreadPoolScope&) = delete;
  ThreadPoolScope& operator=(const ThreadPoolScope&) = delete;

 private:
  PoolState* before_;
};

// What a loop does for the pieces of [0, count); by pointer, since it runs before run_loop returns.
struct LoopBody {
  void (*call)(const void* body, int64_t begin, int64_t end);
  const void* body;
};
void run_loop(int64_t count, int64_t grain, LoopBody body);

// Calls body(begin, end) for pieces that together are [0, count), in any order, on this thread and its
// workers; from `grain` on each is worth a further thread. Which thread takes what is left to chance, so the
// result of a piece must not depend on the others. Throws what the body threw first.
template <typename Body>
void parallel_for(int64_t count, int64_t grain, const Body& body) {
  run_loop(count, grain,
           {[](const void* it, int64_t begin, int64_t end) { (*static_cast<const Body*>(it))(begin, end); },
            &body});
}

}  // namespace diad
