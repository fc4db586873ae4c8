"""What lies in an accelerator's memory: live state, read as bytes, and buffers for pieces of it."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence

import torch

from castor_runtime.state.sections import Section

Copy = tuple[torch.Tensor | None, torch.Tensor]
"""Source, or None for zeros, and target; both flat, uint8, of one size."""


def copy_all(copies: Sequence[Copy]) -> None:
    """Carry copies out: between the processor's memory at once, else queued on this stream."""
    for source, target in copies:
        if source is None:
            target.zero_()
        else:
            target.copy_(source, non_blocking=True)


class LiveBytes:
    """The live tensors as the bytes of a part; alignment between sections reads as zeros.

    Args:
        sections: where each tensor lies, in their order.
        live: the tensors; None reads as zeros.
        total: bytes of the part.
    """

    def __init__(
        self, sections: Sequence[Section], live: Sequence[torch.Tensor | None], total: int
    ) -> None:
        self._runs: list[tuple[int, int, torch.Tensor | None]] = []
        end = 0
        for section, tensor in zip(sections, live, strict=True):
            if section.size_bytes == 0:
                continue
            if end < section.offset:
                self._runs.append((end, section.offset, None))
            end = section.offset + section.size_bytes
            self._runs.append((section.offset, end, None if tensor is None else _raw(tensor)))
        if end < total:
            self._runs.append((end, total, None))
        self._starts = [start for start, _, _ in self._runs]

    def copies(self, start: int, target: torch.Tensor) -> list[Copy]:
        """Return the copies that fill `target` with the bytes from `start` on."""
        end = start + target.numel()
        found: list[Copy] = []
        for index in range(bisect_right(self._starts, start) - 1, len(self._runs)):
            run_start, run_end, raw = self._runs[index]
            if run_start >= end:
                break
            low, high = max(start, run_start), min(end, run_end)
            source = None if raw is None else raw[low - run_start : high - run_start]
            found.append((source, target[low - start : high - start]))
        return found


class BufferPool:
    """Device memory for pieces, used again; counts what is taken. Safe in several threads.

    Args:
        allocate: returns device memory of at least that size.
        least_bytes: of a buffer; so those for shorter pieces do for all that follow.

    Attributes:
        peak_bytes: the most that was taken at once.
    """

    def __init__(self, allocate: Callable[[int], torch.Tensor], least_bytes: int) -> None:
        self._allocate = allocate
        self._least_bytes = least_bytes
        self._lock = threading.Lock()
        self._free: list[torch.Tensor] = []
        self._taken_bytes = 0
        self.peak_bytes = 0

    def take(self, size_bytes: int) -> torch.Tensor:
        """Return room for so many bytes; a free buffer that is too small gives way to a new one."""
        with self._lock:
            self._taken_bytes += size_bytes
            self.peak_bytes = max(self.peak_bytes, self._taken_bytes)
            self._free.sort(key=torch.Tensor.numel)
            for index, buffer in enumerate(self._free):
                if buffer.numel() >= size_bytes:
                    return self._free.pop(index)
            if self._free:
                self._free.pop()
        return self._allocate(max(size_bytes, self._least_bytes))

    def give_back(self, buffer: torch.Tensor, size_bytes: int) -> None:
        """Take a buffer back of which so many bytes were used."""
        with self._lock:
            self._taken_bytes -= size_bytes
            self._free.append(buffer)


def _raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
