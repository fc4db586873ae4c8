"""The process that writes a machine's share of a persistent checkpoint and waits for the rest."""

from __future__ import annotations

import contextlib
import time

from castor_runtime.persistent.address import tier_at
from castor_runtime.persistent.persist import PersistOrder, persist
from castor_runtime.persistent.retention import (
    LEFT_OUT,
    abandon,
    is_abandoned,
    publish_and_prune,
)
from castor_runtime.persistent.storage import complete_iterations
from castor_runtime.persistent.tier import TierError

_OTHERS_AT_LEAST_S = 60.0
_OTHERS_SLOWER = 10.0
"""Other machines are waited for so many times as long as the own share took, but a minute."""

_LOOK_AGAIN_S = 0.5
_LOOK_AT_MOST_S = 5.0


def write(order: str) -> None:
    """Carry out a `PersistOrder` (as JSON); return once the checkpoint counts, or is outdated.

    An attempt that fails on one machine is of no use to any: it is removed at once, so that a tier
    that is full has room for the next one.

    Raises:
        SystemExit: the share could not be written; the message says why; or `LEFT_OUT`.
    """
    wanted = PersistOrder.from_json(order)
    try:
        done = persist(wanted)
        waits = not (done.published or done.left_out)
        reason = _wait_for_the_others(wanted, done.written_s) if waits else ""
    except Exception as error:
        _give_up(wanted)
        told = f"{error}; the next one is tried as ever" if isinstance(error, TierError) else ""
        raise SystemExit(told or f"{type(error).__name__}: {error}") from error
    if reason or done.left_out:
        raise SystemExit(reason or LEFT_OUT)


def _wait_for_the_others(wanted: PersistOrder, own_s: float) -> str:
    """Return "" once the checkpoint counts, or why it never will."""
    others_s = min(wanted.others_s, max(_OTHERS_AT_LEAST_S, _OTHERS_SLOWER * own_s))
    tier = tier_at(wanted.tier)
    look_again_s = _LOOK_AGAIN_S
    give_up_s = time.monotonic() + others_s
    while not publish_and_prune(tier, wanted.attempt, keep=wanted.keep):
        if max(complete_iterations(tier), default=-1) > wanted.attempt.iteration:
            return "a newer checkpoint was persisted before all machines wrote this one"
        if is_abandoned(tier, wanted.attempt):
            _give_up(wanted)  # what was written here since
            return "another machine could not write its share"
        if time.monotonic() > give_up_s:
            _give_up(wanted)
            return f"not all machines wrote their shares within {others_s:.0f} s"
        time.sleep(look_again_s)
        look_again_s = min(1.5 * look_again_s, _LOOK_AT_MOST_S)
    return ""


def _give_up(wanted: PersistOrder) -> None:
    with contextlib.suppress(OSError):  # the storage that failed may refuse this, too
        abandon(tier_at(wanted.tier), wanted.attempt)
