// Tests cancellation scopes.
#include "support/cancellation.h"

#include <thread>

#include "support.h"

TEST_CASE("cancellation: scopes nest, and a thread without a scope is never cancelled") {
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
