"""Memory of the fake GPU: a caching allocator with a pool for each stream, as torch has it.

Memory belongs to the stream that was current when it was asked for. What is freed is given out
again to the same stream at once, whatever is still queued that uses it: that is sound for that
stream, and for no other. Memory that was never used comes when the pool has none that is large
enough.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import numpy as np
import torch

from castor_lab.fake_cuda.streams import Gpu

_ROUND_BYTES = 512


@dataclass(frozen=True, slots=True)
class _Block:
    memory: np.ndarray
    pool: str


class Memory:
    """All memory of one GPU.

    Args:
        cuda: whose.

    Attributes:
        fresh_bytes: asked of the driver so far, by the stream whose pool it is for.
    """

    def __init__(self, cuda: Gpu) -> None:
        self.fresh_bytes: dict[str, int] = {}
        self._cuda = cuda
        self._free: dict[str, list[_Block]] = {}
        self._ranges: list[tuple[int, int]] = []

    def allocate(self, size_bytes: int) -> torch.Tensor:
        """Return bytes of the current stream's pool, flat."""
        with self._cuda.lock:
            pool = self._cuda.current_stream().name
            block = self._take(pool, size_bytes) or self._fresh(pool, size_bytes)
        # A view of its own, which is given up when the tensor and all its views are.
        handed = block.memory[:size_bytes]
        weakref.finalize(handed, self._give_back, block)
        return torch.from_numpy(handed)

    def holds(self, address: int) -> bool:
        """Return whether an address is the GPU's."""
        return any(low <= address < high for low, high in self._ranges)

    def _take(self, pool: str, size_bytes: int) -> _Block | None:
        free = self._free.get(pool, [])
        for index in reversed(range(len(free))):  # what was freed last is the likeliest in use
            if free[index].memory.size >= size_bytes:
                return free.pop(index)
        return None

    def _fresh(self, pool: str, size_bytes: int) -> _Block:
        rounded = max(_ROUND_BYTES, -(-size_bytes // _ROUND_BYTES) * _ROUND_BYTES)
        memory = np.zeros(rounded, np.uint8)
        self.fresh_bytes[pool] = self.fresh_bytes.get(pool, 0) + rounded
        address = memory.ctypes.data
        self._ranges.append((address, address + rounded))
        return _Block(memory, pool)

    def _give_back(self, block: _Block) -> None:
        with self._cuda.lock:
            self._free.setdefault(block.pool, []).append(block)
