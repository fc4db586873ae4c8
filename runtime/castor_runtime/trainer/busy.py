"""Sections in which a trainer may be silent: an evaluation, a long wait for data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from castor_runtime.arena import RankControl

BUSY_LIMIT_S = 6 * 3600.0
"""A section that says nothing of its own length is believed for so long."""


class BusySections:
    """Says in the control block that silence is right, until a section ends or its limit passes.

    Args:
        counters: of this trainer.
    """

    def __init__(self, counters: RankControl) -> None:
        self._counters = counters

    @contextmanager
    def __call__(self, limit_s: float) -> Iterator[None]:
        """Be busy inside the `with`; sections may be nested, and the longest one counts."""
        before_ns = self._counters.busy_until_ns
        until_ns = time.monotonic_ns() + round(limit_s * 1e9)
        self._counters.busy_until_ns = max(before_ns, until_ns)
        try:
            yield
        finally:
            self._counters.busy_until_ns = before_ns
