"""The GPU that is checked; or, for a rehearsal, a stand-in on the CPU that does everything at once.

The parts say nothing to `torch.cuda` but through here, so that a rehearsal runs every line of them.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from castor_runtime.arena.segments import create_file

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table.

    Attributes:
        what: was measured.
        value: of it; None where `unit` says all.
        unit: of `value`.
        right: False where it is not what it has to be.
    """

    what: str
    value: float | None
    unit: str
    right: bool = True


def verdict(what: str, *, equal: bool) -> Line:
    """Return a row that says whether bytes are what they have to be."""
    return Line(what, None, "equal" if equal else "DIFFERENT", equal)


class Gpu:
    """A device, and what it is told.

    Args:
        rehearses: there is none; the CPU stands in.

    Attributes:
        device: cuda:0, or the CPU.
        cuda: `torch.cuda`, or what stands in for it.
    """

    def __init__(self, *, rehearses: bool) -> None:
        self.rehearses = rehearses
        self.device = torch.device("cpu" if rehearses else "cuda:0")
        self.cuda: Any = _stand_in() if rehearses else torch.cuda
        self.cuda.set_device(self.device)

    def spin(self, seconds: float) -> None:
        """Keep the current stream busy for about so long with a kernel that does nothing."""
        self.cuda._sleep(int(seconds * self._cycles_a_second()))

    def _cycles_a_second(self) -> float:
        if not hasattr(self, "_known_cycles"):
            began, ended = self.cuda.Event(enable_timing=True), self.cuda.Event(enable_timing=True)
            self.cuda._sleep(1000)  # the first loads it
            began.record()
            self.cuda._sleep(50_000_000)
            ended.record()
            ended.synchronize()
            self._known_cycles = 50_000_000 / (began.elapsed_time(ended) / 1e3)
        return self._known_cycles

    def pinned(self, size_bytes: int) -> torch.Tensor:
        """Return pinned CPU memory."""
        return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=not self.rehearses)

    def best_s(self, run: Callable[[], object], times: int = 5) -> float:
        """Return the shortest of several runs, by events on the current stream."""
        found: list[float] = []
        for _ in range(times):
            self.cuda.synchronize()
            began, ended = self.cuda.Event(enable_timing=True), self.cuda.Event(enable_timing=True)
            began.record()
            run()
            ended.record()
            ended.synchronize()
            found.append(max(began.elapsed_time(ended), 1e-6) / 1e3)
        return min(found)


@contextlib.contextmanager
def shared_memory(size_bytes: int) -> Iterator[torch.Tensor]:
    """Give memory such as replicas lie in, faulted in; it is gone afterwards."""
    path = Path("/dev/shm") / f"castor-gpu-check-{os.getpid()}"
    mapped = create_file(path, size_bytes)
    try:
        memory = torch.frombuffer(mapped, dtype=torch.uint8)
        memory.zero_()
        yield memory
    finally:
        path.unlink()


class _Stream:
    def wait_stream(self, _: object) -> None:
        """All that was queued has been done."""

    def wait_event(self, _: object) -> None:
        """It has been set."""

    def synchronize(self) -> None:
        """Nothing is queued."""


class _Event:
    def __init__(self, **_: object) -> None:
        self._at_s = 0.0

    def record(self, _: object = None) -> None:
        self._at_s = time.perf_counter()

    def synchronize(self) -> None:
        """It has been set."""

    def query(self) -> bool:
        return True

    def elapsed_time(self, later: _Event) -> float:
        return (later._at_s - self._at_s) * 1e3


def _stand_in() -> SimpleNamespace:
    """Return what has the names of `torch.cuda` that are used here, and queues nothing."""
    local = threading.local()
    default = _Stream()

    @contextlib.contextmanager
    def use(stream: _Stream) -> Iterator[None]:
        before = getattr(local, "stream", default)
        local.stream = stream
        try:
            yield
        finally:
            local.stream = before

    def stream(given: _Stream) -> AbstractContextManager[None]:
        return use(given)

    return SimpleNamespace(
        Stream=lambda *_: _Stream(),
        Event=_Event,
        stream=stream,
        current_stream=lambda *_: getattr(local, "stream", default),
        default_stream=lambda *_: default,
        synchronize=lambda *_: None,
        set_device=lambda _: None,
        empty_cache=lambda: None,
        _sleep=lambda cycles: time.sleep(cycles / 1e12),
        cudart=lambda: SimpleNamespace(
            cudaHostRegister=lambda *_: 0, cudaHostUnregister=lambda *_: 0
        ),
    )
