"""How fast bytes go to persistent storage and come from it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from threading import Lock
from typing import Final

from castor_runtime.named import named

VARIABLE: Final = "CASTOR_STORAGE_PACER"
"""Names, as module:function, who makes the pacers of every process on this host.

Where storage lies is a property of the host: no job knows of it. The function takes what
`storage_pacer` does and returns a `Pacer`.
"""


class Pacer:
    """Holds what passes through it to a rate, on average over all threads that share it.

    A benchmark emulates with it the storage that sixteen machines share (paper section 7.1); an
    operator keeps with it the persistent tier off a network that training needs.

    Args:
        bytes_per_s: the rate; None for no limit.
        clock: monotonic seconds.
        sleep: waits for so many seconds.
    """

    def __init__(
        self,
        bytes_per_s: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if bytes_per_s is not None and not bytes_per_s > 0:
            raise ValueError(f"a rate is positive bytes per second, or None; got {bytes_per_s}")
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._sleep = sleep
        self._lock = Lock()
        self._free_at_s = float("-inf")

    def pace(self, size_bytes: int) -> None:
        """Wait until `size_bytes` more may have passed."""
        if self._bytes_per_s is None:
            return
        with self._lock:
            now_s = self._clock()
            self._free_at_s = max(self._free_at_s, now_s) + size_bytes / self._bytes_per_s
            wait_s = self._free_at_s - now_s
        self._sleep(wait_s)


def storage_pacer(*, reading: bool = False, bytes_per_s: float | None = None) -> Pacer:
    """Return what holds storage traffic to its speed on this host.

    Args:
        reading: bytes come from storage; else they go there.
        bytes_per_s: a limit to hold besides; None for none.
    """
    if maker := os.environ.get(VARIABLE, ""):
        pacer: Pacer = named(maker)(reading=reading, bytes_per_s=bytes_per_s)
        return pacer
    return Pacer(bytes_per_s)
