"""The process that writes one machine's share of a persistent checkpoint, and waits for the rest."""

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
        published = persist(wanted).published
        while not published:
            newest = max(complete_iterations(Path(wanted.folder)), default=-1)
            if newest > wanted.attempt.iteration:
                raise SystemExit(f"iteration {newest} was persisted before all wrote this one")
            time.sleep(_LOOK_EVERY_S)
            published = publish_and_prune(Path(wanted.folder), wanted.attempt, keep=wanted.keep)
    except Exception as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
