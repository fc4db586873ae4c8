"""The process that writes a machine's share of a persistent checkpoint and waits for the rest."""

from __future__ import annotations

import time
from pathlib import Path

from castor_runtime.persistent.persist import PersistOrder, persist
from castor_runtime.persistent.retention import publish_and_prune
from castor_runtime.persistent.storage import complete_iterations

_LOOK_EVERY_S = 0.5


def write(order: str) -> None:
    """Carry out a `PersistOrder` (as JSON); return once the checkpoint counts, or is outdated.

    Raises:
        SystemExit: the share could not be written; the message says why.
    """
    wanted = PersistOrder.from_json(order)
    try:
        published = persist(wanted).published or _wait_for_the_others(wanted)
    except Exception as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    if not published:
        raise SystemExit("a newer checkpoint was persisted before all machines wrote this one")


def _wait_for_the_others(wanted: PersistOrder) -> bool:
    folder = Path(wanted.folder)
    while not publish_and_prune(folder, wanted.attempt, keep=wanted.keep):
        if max(complete_iterations(folder), default=-1) > wanted.attempt.iteration:
            return False
        time.sleep(_LOOK_EVERY_S)
    return True
