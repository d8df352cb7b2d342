"""Stops a run on SIGINT or SIGTERM after the current step and its checkpoint, so that no step is lost."""

import signal
import threading
import time
from types import FrameType, TracebackType

import torch
import torch.distributed as dist

# A terminal sends Ctrl-C to all processes of a command, and the `diad` command also forwards it. Signals
# within this time count as one request. A later signal aborts immediately.
SAME_WISH_SECONDS = 1.0


class Interrupted(KeyboardInterrupt):
    """The run was stopped on request. The checkpoint contains all completed steps."""


class StopRequest:
    """Context manager that records SIGINT and SIGTERM. A second request raises KeyboardInterrupt."""

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
        """Returns whether any process received a stop request. All processes must stop at the same step."""
        asked = self.received_at is not None
        if not dist.is_initialized():
            return asked
        flag = torch.tensor([float(asked)], device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())
