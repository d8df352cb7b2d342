// Interruption: who asks, on which thread.
#include "support/cancellation.h"

#include <thread>

#include "support.h"

TEST_CASE("interruption: scopes nest, and a thread without one is never interrupted") {
  diad::check_cancelled();
  bool inner_unwanted = false;
  const diad::CancellationScope outer([] { return false; });
  {
    const diad::CancellationScope inner([&] { return inner_unwanted; });
    diad::check_cancelled();
    inner_unwanted = true;
    CHECK_THROWS_AS(diad::check_cancelled(), diad::Cancelled);
    std::thread([] { diad::check_cancelled(); }).join();
    std::thread([is_cancelled = diad::current_cancellation()] {
      const diad::CancellationScope handed_over(is_cancelled);
      CHECK_THROWS_AS(diad::check_cancelled(), diad::Cancelled);
    }).join();
  }
  diad::check_cancelled();
}
