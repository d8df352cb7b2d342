// Tests the choice of Winograd's convolution by memory growth and number of runs.
#include "cpu/winograd_heuristic.h"

#include "support.h"

namespace {

constexpr int64_t square(int64_t side) { return side * side; }

struct Expected {
  int64_t side, channels, runs, tile;
  bool stored;
};

}  // namespace

TEST_CASE("layers with few pixels or channels do not use Winograd") {
  CHECK(diad::choose_winograd(square(8), square(1280), 10).tile == 0);
  CHECK(diad::choose_winograd(square(15), square(64), 1).tile == 0);
  CHECK(diad::choose_winograd(square(256), square(32), 1).tile == 0);
}

TEST_CASE("layers of the published network get a tile size by memory and number of runs") {
  for (const auto& [side, channels, runs, tile, stored] : {
           Expected{16, 1280, 10, 2, true},  // denoiser: stored, otherwise transformed ten times
           Expected{32, 320, 10, 2, true},
           Expected{32, 512, 1, 2, false},  // autoencoder: transformed in each run
           Expected{64, 512, 1, 4, false},
           Expected{128, 256, 1, 4, false},
           Expected{256, 128, 1, 4, true},  // small enough to be stored
       }) {
    CAPTURE(side);
    const diad::WinogradChoice choice = diad::choose_winograd(square(side), square(channels), runs);
    CHECK(choice.tile == tile);
    CHECK(choice.stored == stored);
  }
}

TEST_CASE("a layer that runs once does not use Winograd if the transform costs more than it saves") {
  CHECK(diad::choose_winograd(square(16), square(1280), 1).tile == 0);
}
