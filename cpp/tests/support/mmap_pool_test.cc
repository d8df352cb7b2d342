// Tests the memory pool: free pieces, reuse, release.
#include "support/mmap_pool.h"

#include <c10/core/CPUAllocator.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <new>
#include <optional>
#include <random>
#include <stdexcept>
#include <vector>

#include "address_limit.h"
#include "cpu/winograd_conv.h"
#include "random_tensor.h"
#include "support.h"

#ifndef _WIN32

namespace {

using namespace diad;

constexpr int64_t kMiB = 1 << 20;

// Pool usage in addition to the usage before the test.
class Held {
 public:
  Held() {
    trim_pool();
    before_ = pool_bytes().used;
  }
  [[nodiscard]] int64_t used() const { return static_cast<int64_t>(pool_bytes().used - before_); }
  [[nodiscard]] static int64_t waiting() { return static_cast<int64_t>(pool_bytes().waiting); }

 private:
  size_t before_;
};

at::Tensor piece(int64_t bytes) { return pooled_empty({bytes}, at::kByte); }

TEST_CASE("allocates from LibTorch outside a PooledScope and below 1 MiB") {
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

TEST_CASE("an allocation takes part of a free piece and leaves the rest free") {
  const Held held;
  const PooledScope scope(true);
  at::Tensor first = piece(8 * kMiB);
  const auto* const place = first.const_data_ptr<uint8_t>();
  first = at::Tensor();
  CHECK(held.used() == 0);
  CHECK(Held::waiting() == 8 * kMiB);

  const at::Tensor front = piece(3 * kMiB - 1), behind = piece(5 * kMiB);  // whole pages
  CHECK(front.const_data_ptr<uint8_t>() == place);
  CHECK(behind.const_data_ptr<uint8_t>() == place + 3 * kMiB);
  CHECK(held.used() == 8 * kMiB);
  CHECK(Held::waiting() == 0);
}

TEST_CASE("freed neighbors are merged in any order") {
  const Held held;
  const PooledScope scope(true);
  const std::vector<std::vector<size_t>> orders{{0, 1, 2}, {0, 2, 1}, {1, 0, 2},
                                                {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
  piece(9 * kMiB);
  for (const auto& order : orders) {
    std::vector<at::Tensor> pieces{piece(2 * kMiB), piece(3 * kMiB), piece(4 * kMiB)};
    const auto* const place = pieces[0].const_data_ptr<uint8_t>();
    CHECK(Held::waiting() == 0);
    for (const size_t which : order) {
      pieces[which].fill_(7);
      pieces[which] = at::Tensor();
    }
    CHECK(Held::waiting() == 9 * kMiB);
    const at::Tensor whole = piece(9 * kMiB);
    CHECK(whole.const_data_ptr<uint8_t>() == place);
    CHECK(whole.eq(7).all().item<bool>());  // a new mapping would contain zeros
  }
}

TEST_CASE("an allocation takes the smallest piece that fits") {
  const Held held;
  const PooledScope scope(true);
  std::vector<at::Tensor> pieces{piece(8 * kMiB), piece(kMiB), piece(3 * kMiB), piece(kMiB),
                                 piece(2 * kMiB)};  // not all of them neighbors
  const auto* const place = pieces[2].const_data_ptr<uint8_t>();
  for (const size_t which : {0, 2, 4}) pieces[which] = at::Tensor();
  CHECK(piece(2 * kMiB + 1).const_data_ptr<uint8_t>() == place);
}

TEST_CASE("free pieces are unmapped before the total exceeds the peak use") {
  const Held held;
  const PooledScope scope(true);
  at::Tensor large = piece(10 * kMiB);
  const at::Tensor between = piece(kMiB);
  at::Tensor small = piece(4 * kMiB);
  large = small = at::Tensor();
  CHECK(Held::waiting() == 14 * kMiB);
  {
    const at::Tensor fits_nowhere = piece(11 * kMiB);  // the largest piece is unmapped first
    CHECK(held.used() == 12 * kMiB);
    CHECK(Held::waiting() <= 3 * kMiB);
    const at::Tensor largest_yet = piece(20 * kMiB);
    CHECK(held.used() == 32 * kMiB);
    CHECK(Held::waiting() == 0);
  }
  CHECK(Held::waiting() == 31 * kMiB);
  trim_pool();
  CHECK(Held::waiting() == 0);
  CHECK(held.used() == kMiB);
}

TEST_CASE("trim_pool resets the peak use") {
  const Held held;
  const PooledScope scope(true);
  piece(64 * kMiB);
  trim_pool();
  piece(4 * kMiB);
  piece(8 * kMiB);
  CHECK(Held::waiting() == 8 * kMiB);
}

TEST_CASE("the pool works after a failed allocation") {
  const Held held;
  const PooledScope scope(true);
  piece(4 * kMiB);
  for (const int64_t bytes : {int64_t{1} << 60, std::numeric_limits<int64_t>::max()})
    CHECK_THROWS_AS(piece(bytes), std::bad_alloc);
  CHECK(held.used() == 0);
  CHECK(Held::waiting() == 0);
  piece(4 * kMiB);
  piece(8 * kMiB);
  CHECK(Held::waiting() == 8 * kMiB);  // the failed allocation does not count as peak use
}

#ifdef DIAD_HAS_ADDRESS_LIMIT

TEST_CASE("free pieces are unmapped when the system rejects a mapping") {
  constexpr int64_t kPiece = 64 * kMiB;
  const Held held;
  const PooledScope scope(true);
  std::vector<at::Tensor> pieces;
  for (int i = 0; i < 8; ++i) pieces.push_back(piece(kPiece));
  std::ranges::sort(pieces, {}, [](const at::Tensor& one) { return one.const_data_ptr<uint8_t>(); });
  for (size_t i = 0; i < pieces.size(); i += 2) pieces[i].reset();  // no two are neighbors
  REQUIRE(Held::waiting() == 4 * kPiece);
  // None of the four is large enough. Two are unmapped anyway to stay below the peak use, which is not enough
  // here.
  const AddressLimit limit(address_space() - 2 * kPiece);
  const at::Tensor larger = piece(kPiece * 3 / 2);
  CHECK(Held::waiting() == 0);
  CHECK(held.used() == 4 * kPiece + kPiece * 3 / 2);
  CHECK_THROWS_AS(piece(4 * kPiece), std::bad_alloc);
}

#endif

TEST_CASE("pieces of many sizes, freed in any order, never overlap") {
  const Held held;
  const PooledScope scope(true);
  std::mt19937 random(5);
  std::vector<at::Tensor> pieces(24);
  int64_t most = 0;
  for (int round = 0; round < 2000; ++round) {
    const auto which = static_cast<size_t>(random() % pieces.size());
    at::Tensor& one = pieces[which];
    if (one.defined()) {
      CHECK(one[0].item<uint8_t>() == which);
      CHECK(one[-1].item<uint8_t>() == which);
      one = at::Tensor();
    } else {
      one = piece(kMiB + static_cast<int64_t>(random() % (3 * kMiB)));
      one[0] = one[-1] = static_cast<int64_t>(which);
    }
    most = std::max(most, held.used());
    REQUIRE(held.used() + Held::waiting() <= most);
  }
  pieces.clear();
  CHECK(held.used() == 0);
  trim_pool();
  CHECK(Held::waiting() == 0);
}

TEST_CASE("the outermost scope empties the pool, also when it ends with an exception") {
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

TEST_CASE("pieces can outlive their scope and are then unmapped at once") {
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

TEST_CASE("a layer is bit-exact with and without the pool, also in reused memory") {
  const c10::InferenceMode guard;
  const at::Tensor weight = random_tensor({32, 32, 3, 3}, 1), x = random_tensor({1, 32, 128, 128}, 2);
  SKIP_UNLESS(WinogradConv::available(weight), "needs AVX2");
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
