"""A process does not end by itself while its own replica is being written over.

What the replica held is gone by then, and what it is to hold lies in this process; see
`castor_runtime.arena.own_turn`. Nothing but the standard library: the fork server imports it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_changed = threading.Condition()
_under_way = 0


@contextmanager
def last_copy() -> Iterator[None]:
    """Have the process's end wait for what is done within."""
    global _under_way  # noqa: PLW0603 - it is of the process, as its end is
    with _changed:
        _under_way += 1
    try:
        yield
    finally:
        with _changed:
            _under_way -= 1
            _changed.notify_all()


def wait_for_last_copy(limit_s: float) -> bool:
    """Wait until nothing of the kind is done any more; False if that took longer than the limit."""
    with _changed:
        return _changed.wait_for(lambda: _under_way == 0, limit_s)
