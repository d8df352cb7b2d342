// Threads that share in a thread's loops.
//
// Instead of OpenMP's: there the work is divided beforehand and everybody waits for the last thread, so that one which has lost its core to
// another program holds up all others, at each of a thousand loops a picture. Here whoever has time takes the next piece.
#pragma once

#include <cstdint>
#include <memory>

namespace diad {

class HelperPool;

class Helpers {
 public:
  // Starts `count` threads, fewer where the system has no more.
  explicit Helpers(int count);
  ~Helpers();  // ends them; no loop may be running
  Helpers(const Helpers&) = delete;
  Helpers& operator=(const Helpers&) = delete;

  [[nodiscard]] int count() const;

 private:
  friend class HelperScope;
  std::unique_ptr<HelperPool> pool_;
};

// While one lives, the helpers share in this thread's loops; in those of one thread at a time.
class HelperScope {
 public:
  explicit HelperScope(Helpers& helpers);
  ~HelperScope();
  HelperScope(const HelperScope&) = delete;
  HelperScope& operator=(const HelperScope&) = delete;

 private:
  HelperPool* before_;
};

// What a loop does for the pieces of [0, count); by pointer, since it runs before share_loop returns.
struct LoopBody {
  void (*call)(const void* body, int64_t begin, int64_t end);
  const void* body;
};
void share_loop(int64_t count, int64_t grain, LoopBody body);

// Calls body(begin, end) for pieces that together are [0, count), in any order, on this thread and its helpers; from `grain` on each is
// worth a further thread. Which thread takes what is left to chance, so the result of a piece must not depend on the others. Throws what
// the body threw first.
template <typename Body>
void in_parallel(int64_t count, int64_t grain, const Body& body) {
  share_loop(count, grain, {[](const void* it, int64_t begin, int64_t end) { (*static_cast<const Body*>(it))(begin, end); }, &body});
}

}  // namespace diad
