"""How many received chunks each scheme lets be on their way to CPU memory at once."""

from __future__ import annotations

_OF_SCHEME = {"naive": None, "unpipelined": 1}


def chunks_in_flight(scheme: str, sub_buffers: int) -> int | None:
    """Return how many chunks may be on their way to CPU memory at once; None: as many as come.

    Naive interleaving reserves no buffer: each partition of the checkpoint is received whole.
    Without a pipeline it is one, so that the next chunk waits for the copy of the one before.
    All others, what goes without a schedule too, use every sub-buffer (Gemini, sec. 5.2, 7.4).

    Args:
        scheme: a key of `castor_policy.interleaving.SCHEMES`, or any other name.
        sub_buffers: p, their number.
    """
    return _OF_SCHEME.get(scheme, sub_buffers)
