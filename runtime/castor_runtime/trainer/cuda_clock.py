"""A GPU's time by the host's clock: events, and one moment at which both clocks were read.

Events tell the time between two of them only, in single precision: a millisecond's fraction is lost
where they lie hours apart. So it is reckoned from a recent event, whose own time is known.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from castor_runtime.trainer.stream_spans import HostMark, Mark

_cuda: Any = torch.cuda  # which has no types for some of its names


class CudaClock:
    """The clock of one GPU; made in a thread whose device it is.

    Args:
        device: the GPU.
        now_ns: the host's clock, CLOCK_MONOTONIC.
    """

    def __init__(self, device: torch.device, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._device = device
        self._now_ns = now_ns
        self.renew()

    def mark(self) -> Mark:
        """Queue a mark on the calling thread's stream."""
        if torch.cuda.is_current_stream_capturing():
            return HostMark(self._now_ns())  # an event in a graph could never be read
        event = _cuda.Event(enable_timing=True, blocking=True)
        event.record(torch.cuda.current_stream(self._device))
        return _EventMark(self, event)

    def renew(self) -> None:
        """Read both clocks: waits, awake, for the calling thread's stream, which should be idle."""
        event = _cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        event.synchronize()
        self._anchor = (event, self._now_ns())

    def follow(self, mark: Mark) -> None:
        """Reckon from this mark on, which has passed."""
        if isinstance(mark, _EventMark):
            self._anchor = (mark.event, mark.ns())

    def ns(self, event: Any) -> int:
        """Return when an event was passed, in nanoseconds of CLOCK_MONOTONIC."""
        anchor, anchor_ns = self._anchor
        passed_ns: int = anchor_ns + round(anchor.elapsed_time(event) * 1e6)
        return passed_ns


class _EventMark:
    """A mark on a stream.

    Args:
        clock: of its GPU.
        event: recorded, with timing.
    """

    def __init__(self, clock: CudaClock, event: Any) -> None:
        self.event = event
        self._clock = clock
        self._has_passed = False

    def passed(self) -> bool:
        """Return whether the GPU has come there; does not wait."""
        self._has_passed = self._has_passed or bool(self.event.query())
        return self._has_passed

    def wait(self) -> None:
        """Wait until it has, asleep; at once if it has been seen to have."""
        if not self.passed():
            self.event.synchronize()
            self._has_passed = True

    def ns(self) -> int:
        """Return when, in nanoseconds of CLOCK_MONOTONIC; it must have passed."""
        return self._clock.ns(self.event)
