"""Checkpoint memory that the driver knows: copies to it run at full speed and beside other work.

A registration is of a process's mapping, and ends with the process: each trainer registers the
segments that it maps once, in the thread that makes its checkpoints, before the first of them and
beside training; a segment outlives it, what it has registered does not. In pieces (others saw a
single call fail from 512 GiB on), in several threads, for the driver takes 0.1 s a GB. Where it
refuses a piece, copies to that piece go through the driver's own buffers: slower, and right.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from castor_runtime.trainer.staging import Copy

_PIECE_BYTES = 1 << 30
_THREADS = 4


class HostPins:
    """What one trainer has registered.

    Args:
        cudart: returns the driver's functions, as `torch.cuda.cudart` does.
        enter_thread: makes a thread one of the device's.
        piece_bytes: of a registration, whole pages.
    """

    def __init__(
        self,
        cudart: Callable[[], Any],
        enter_thread: Callable[[], None],
        piece_bytes: int = _PIECE_BYTES,
    ) -> None:
        self._cudart = cudart
        self._enter_thread = enter_thread
        self._piece_bytes = piece_bytes
        self._pinned: list[int] = []
        self._edges: list[int] = []
        self._warned = False

    def pin(self, memory: torch.Tensor) -> None:
        """Register memory of the CPU; what the driver refuses is told of once, and left as it is.

        Args:
            memory: flat, uint8.
        """
        begin, end = memory.data_ptr(), memory.data_ptr() + memory.numel()
        pieces = [
            (start, min(start + self._piece_bytes, end))
            for start in range(begin, end, self._piece_bytes)
        ]
        results = self._in_threads(self._register, pieces)
        self._edges = sorted({*self._edges, *(edge for piece in pieces for edge in piece)})
        refused = [(piece, code) for piece, code in zip(pieces, results, strict=True) if code != 0]
        self._pinned += [
            start for (start, _), code in zip(pieces, results, strict=True) if code == 0
        ]
        if refused and not self._warned:
            self._warned = True
            there = sum(stop - start for (start, stop), _ in refused)
            sys.stderr.write(
                f"castor: the driver does not pin {there} of {memory.numel()} bytes of checkpoint "
                f"memory (cudaHostRegister: error {refused[0][1]}); checkpoints are copied "
                "more slowly. It needs pages that the kernel can keep in place: look for a limit "
                "of the container's memory, and at the kernel's log; `ulimit -l` does not matter\n"
            )

    def split(self, copies: Sequence[Copy]) -> list[Copy]:
        """Return copies of which each lies in one piece: the driver refuses one that is in two.

        Args:
            copies: into memory of the CPU.
        """
        found: list[Copy] = []
        for source, target in copies:
            begin, size = target.data_ptr(), target.numel()
            first = bisect_right(self._edges, begin)
            low = 0
            for edge in self._edges[first:]:
                if edge >= begin + size:
                    break
                high = edge - begin
                found.append((None if source is None else source[low:high], target[low:high]))
                low = high
            found.append((None if source is None else source[low:], target[low:]))
        return found

    def unpin(self) -> None:
        """Let go of all that is registered; nothing is copied to it any more."""
        pinned, self._pinned, self._edges = self._pinned, [], []
        self._in_threads(self._unregister, [(start, start) for start in pinned])

    def _in_threads(
        self, work: Callable[[tuple[int, int]], int], pieces: Sequence[tuple[int, int]]
    ) -> list[int]:
        # In threads of their own also because a call that fails leaves its error to its thread.
        with ThreadPoolExecutor(
            _THREADS, thread_name_prefix="castor-pin", initializer=self._enter_thread
        ) as pool:
            return list(pool.map(work, pieces))

    def _register(self, piece: tuple[int, int]) -> int:
        start, end = piece
        return int(self._cudart().cudaHostRegister(start, end - start, 0))

    def _unregister(self, piece: tuple[int, int]) -> int:
        return int(self._cudart().cudaHostUnregister(piece[0]))
