// Where Winograd's convolution is chosen: what weights may grow by, and when they are transformed.
#include "cpu/winograd_heuristic.h"

#include "support.h"

namespace {

constexpr int64_t square(int64_t side) { return side * side; }

struct Expected {
  int64_t side, channels, runs, tile;
  bool stored;
};

}  // namespace

TEST_CASE("a layer of few pixels or few channels is left to the others") {
  CHECK(diad::choose_winograd(square(8), square(1280), 10).tile == 0);
  CHECK(diad::choose_winograd(square(15), square(64), 1).tile == 0);
  CHECK(diad::choose_winograd(square(256), square(32), 1).tile == 0);
}

TEST_CASE("layers of the published size get the tile that their memory and their runs are worth") {
  for (const auto& [side, channels, runs, tile, stored] : {
           Expected{16, 1280, 10, 2,
                    true},  // of the denoiser: stored, since it would be transformed ten times
           Expected{32, 320, 10, 2, true},
           Expected{32, 512, 1, 2, false},  // of the autoencoder: transformed when it runs
           Expected{64, 512, 1, 4, false},
           Expected{128, 256, 1, 4, false},
           Expected{256, 128, 1, 4, true},  // small enough to be kept
       }) {
    CAPTURE(side);
    const diad::WinogradChoice choice = diad::choose_winograd(square(side), square(channels), runs);
    CHECK(choice.tile == tile);
    CHECK(choice.stored == stored);
  }
}

TEST_CASE("where transforming costs more than it saves, a layer that runs once is left to the others") {
  CHECK(diad::choose_winograd(square(16), square(1280), 1).tile == 0);
}
