"""Stopping a run on Ctrl-C or SIGTERM without losing steps: the step is finished, the checkpoint written, then the run ends."""

import signal
import threading
import time
from types import FrameType, TracebackType

import torch
import torch.distributed as dist

# A terminal sends Ctrl-C to every process of the command and the command line passes it on as well: what follows within this time
# is the same wish, a later signal is impatience.
SAME_WISH_SECONDS = 1.0


class Interrupted(KeyboardInterrupt):
    """The run ended early on request; its checkpoint holds every step taken."""


class StopRequest:
    """Notes SIGINT and SIGTERM while it is entered; a second signal after a second raises at once."""

    def __init__(self) -> None:
        self.received_at: float | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received_at is not None and now - self.received_at > SAME_WISH_SECONDS:
            raise KeyboardInterrupt
        self.received_at = self.received_at or now

    def agreed(self, device: torch.device) -> bool:
        """Whether this process or, with several GPUs, any of them was asked to stop: all must leave at the same step."""
        asked = self.received_at is not None
        if not dist.is_initialized():
            return asked
        flag = torch.tensor([float(asked)], device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())
