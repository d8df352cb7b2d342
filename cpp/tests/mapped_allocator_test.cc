// Memory outside the heap: what waits in the pool, what serves again, what goes back.
#include "mapped_allocator.h"

#include <c10/core/CPUAllocator.h>
#include <c10/core/InferenceMode.h>

#include <cstdint>
#include <limits>
#include <new>
#include <optional>
#include <stdexcept>

#include "random_tensor.h"
#include "support.h"
#include "winograd_conv.h"

#ifndef _WIN32

namespace {

using namespace diad;

constexpr int64_t kMiB = 1 << 20;

// What the pool holds beyond what it held before the test.
class Held {
 public:
  Held() {
    release_waiting();
    before_ = pool_bytes().used;
  }
  [[nodiscard]] int64_t used() const { return static_cast<int64_t>(pool_bytes().used - before_); }
  [[nodiscard]] static int64_t waiting() { return static_cast<int64_t>(pool_bytes().waiting); }

 private:
  size_t before_;
};

at::Tensor piece(int64_t bytes) { return pooled_empty({bytes}, at::kByte); }

TEST_CASE("outside a PooledScope, and below 1 MiB, memory is LibTorch's") {
  const Held held;
  CHECK(pooled_allocator() == c10::GetCPUAllocator());
  const at::Tensor outside = piece(4 * kMiB);
  CHECK(held.used() == 0);
  const PooledScope scope(true);
  CHECK(pooled_allocator() != c10::GetCPUAllocator());
  const at::Tensor small = piece(kMiB - 1), large = piece(kMiB);
  CHECK(held.used() == kMiB);
  const PooledScope off(false);
  CHECK(pooled_allocator() == c10::GetCPUAllocator());
}

TEST_CASE("a piece that was let go serves again where little of it stays unused") {
  const Held held;
  const PooledScope scope(true);
  at::Tensor first = piece(8 * kMiB);
  void* const place = first.mutable_data_ptr();
  first = at::Tensor();
  CHECK(held.used() == 0);
  CHECK(Held::waiting() == 8 * kMiB);

  at::Tensor second = piece(6 * kMiB);
  CHECK(second.mutable_data_ptr() == place);
  CHECK(held.used() == 8 * kMiB);
  CHECK(Held::waiting() == 0);
  second = at::Tensor();

  at::Tensor third = piece(8 * kMiB);  // the usual case: the same size again
  CHECK(third.mutable_data_ptr() == place);
  third = at::Tensor();

  const at::Tensor much_smaller = piece(6 * kMiB - 1);
  CHECK(held.used() == 6 * kMiB - 1);
}

TEST_CASE("what waits gives way before all together exceed what was in use at once") {
  const Held held;
  const PooledScope scope(true);
  {
    const at::Tensor a = piece(10 * kMiB), b = piece(4 * kMiB);
  }
  CHECK(Held::waiting() == 14 * kMiB);
  {
    const at::Tensor fits_beside_the_small_one = piece(6 * kMiB);  // the largest goes first
    CHECK(held.used() == 6 * kMiB);
    CHECK(Held::waiting() == 4 * kMiB);
    const at::Tensor largest_yet = piece(20 * kMiB);
    CHECK(held.used() == 26 * kMiB);
    CHECK(Held::waiting() == 0);
  }
  CHECK(Held::waiting() == 26 * kMiB);
  release_waiting();
  CHECK(Held::waiting() == 0);
}

TEST_CASE("releasing forgets how much was in use") {
  const Held held;
  const PooledScope scope(true);
  piece(64 * kMiB);
  release_waiting();
  piece(8 * kMiB);
  piece(4 * kMiB);
  CHECK(Held::waiting() == 4 * kMiB);
}

TEST_CASE("a piece that cannot be had is an error, and the pool goes on") {
  const Held held;
  const PooledScope scope(true);
  piece(8 * kMiB);
  CHECK_THROWS_AS(piece(int64_t{1} << 60), std::bad_alloc);
  CHECK(held.used() == 0);
  CHECK(Held::waiting() == 0);
  piece(8 * kMiB);
  piece(4 * kMiB);
  CHECK(Held::waiting() == 4 * kMiB);  // as if what could not be had had never been asked for
}

TEST_CASE("nothing waits after the scope, nor after one that an error ends; a scope inside another ends nothing") {
  const Held held;
  {
    const PooledScope scope(true);
    piece(2 * kMiB);
    {
      const PooledScope inner(true);
    }
    CHECK(Held::waiting() == 2 * kMiB);
  }
  CHECK(Held::waiting() == 0);
  const auto failing = [] {
    const PooledScope scope(true);
    piece(2 * kMiB);
    throw std::runtime_error("of a layer");
  };
  CHECK_THROWS_AS(failing(), std::runtime_error);
  CHECK(Held::waiting() == 0);
  CHECK(pooled_allocator() == c10::GetCPUAllocator());
}

TEST_CASE("pieces outlive their scope; then nothing waits for them") {
  const Held held;
  std::optional<at::Tensor> kept;
  {
    const PooledScope scope(true);
    kept = piece(2 * kMiB);
  }
  kept->fill_(7);
  CHECK(kept->eq(7).all().item<bool>());
  CHECK(held.used() == 2 * kMiB);
  kept.reset();
  CHECK(held.used() == 0);
  CHECK(Held::waiting() == 0);
}

TEST_CASE("a layer computes the same, to the bit, with the pool and without it, also into memory that another has filled") {
  const c10::InferenceMode guard;
  const at::Tensor weight = random_tensor({32, 32, 3, 3}, 1), x = random_tensor({1, 32, 128, 128}, 2);
  if (!WinogradConv::available(weight)) return;
  const WinogradConv conv(weight, std::nullopt, {.tile = 4, .stored = false});
  const at::Tensor expected = conv.run(x, std::nullopt);
  const Held held;
  const PooledScope scope(true);
  for (int i = 0; i < 3; ++i) {
    pooled_empty(expected.sizes(), at::kFloat).fill_(std::numeric_limits<float>::quiet_NaN());
    CHECK(conv.run(x, std::nullopt).equal(expected));
  }
  CHECK(Held::waiting() > 0);
}

}  // namespace

#endif
