"""Pieces of live state on their way to peers through a few buffers in CPU memory, used in turn.

For devices that send from CPU memory, where the own replica does not hold what is sent yet
(`castor_runtime.trainer.own_last`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch

from castor_runtime.state.sections import Section
from castor_runtime.trainer.staging import Copy, LiveBytes

_BUFFERS = 4
"""One is filled while others are sent."""


class LivePieces:
    """Reads live state, for one checkpoint after the other.

    Args:
        copy: carries copies out; done on return.
        allocate: returns CPU memory of that size to copy into.
    """

    def __init__(
        self, copy: Callable[[Sequence[Copy]], object], allocate: Callable[[int], torch.Tensor]
    ) -> None:
        self._copy = copy
        self._allocate = allocate
        self._live: LiveBytes | None = None
        self._free: list[torch.Tensor] = []
        self._sent: deque[Callable[[], None]] = deque()
        self._taken = 0

    @property
    def is_held(self) -> bool:
        """Whether pieces come from live state."""
        return self._live is not None

    def hold(
        self, sections: Sequence[Section], live: Sequence[torch.Tensor | None], size_bytes: int
    ) -> None:
        """Read these from now on, as a part of that size."""
        self._sent.clear()
        self._live = LiveBytes(sections, live, size_bytes)

    def let_go(self) -> None:
        """Read nothing any more: the own replica is filled, and sent."""
        self._live = None

    def read(self, start: int, target: torch.Tensor) -> None:
        """Fill `target` with the bytes from `start` on."""
        assert self._live is not None, "it is held before it is read"
        self._copy(self._live.copies(start, target))

    def take(self, start: int, end: int) -> tuple[torch.Tensor, Callable[[], None]]:
        """Return a copy of bytes [start, end), and what gives its buffer back once it is sent.

        Where all buffers are taken, what was sent first is waited for: see `sends`.
        """
        while self._taken >= _BUFFERS and self._sent:
            self._sent.popleft()()
        buffer = self._buffer(end - start)
        self._taken += 1
        piece = buffer[: end - start]
        self.read(start, piece)

        def give_back() -> None:
            self._taken -= 1
            self._free.append(buffer)

        return piece, give_back

    def sends(self, wait: Callable[[], None]) -> None:
        """Say what returns when pieces that were taken are sent; it may be called again."""
        self._sent.append(wait)

    def _buffer(self, size_bytes: int) -> torch.Tensor:
        """Return a free buffer, or a new one: they are never given up, for they may be pinned."""
        for index, buffer in enumerate(self._free):
            if buffer.numel() >= size_bytes:
                return self._free.pop(index)
        return self._allocate(size_bytes)
