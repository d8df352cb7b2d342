// Interruption: who asks, on which thread.
#include "interruption.h"

#include <thread>

#include "support.h"

TEST_CASE("interruption: scopes nest, and a thread without one is never interrupted") {
  diad::check_interruption();
  bool inner_unwanted = false;
  const diad::InterruptionScope outer([] { return false; });
  {
    const diad::InterruptionScope inner([&] { return inner_unwanted; });
    diad::check_interruption();
    inner_unwanted = true;
    CHECK_THROWS_AS(diad::check_interruption(), diad::Interrupted);
    std::thread([] { diad::check_interruption(); }).join();
    std::thread([unwanted = diad::what_interrupts()] {
      const diad::InterruptionScope handed_over(unwanted);
      CHECK_THROWS_AS(diad::check_interruption(), diad::Interrupted);
    }).join();
  }
  diad::check_interruption();
}
