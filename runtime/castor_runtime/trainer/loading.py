"""Load what the agent says: from checkpoint memory, or from persistent storage."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from castor_runtime.arena import ArenaError, Replica
from castor_runtime.pacing import storage_pacer
from castor_runtime.state.meta import decode
from castor_runtime.state.protocol import DamagedError, PersistentPart, State, Stateful
from castor_runtime.trainer.agent_link import TrainerSettings
from castor_runtime.trainer.checked_sections import CheckedSections
from castor_runtime.trainer.random_state import restore_random_state


class Loader:
    """Sets a trainer's state to that of a checkpoint.

    Args:
        settings: of the trainer.
        state: what is set.
        fingerprint: of the job's checkpoints.
        open_replica: opens a replica by its segment's name.
        agree: on what is read from persistent storage, see `PersistentPart`.
    """

    def __init__(
        self,
        settings: TrainerSettings,
        state: State,
        fingerprint: str,
        open_replica: Callable[[str], Replica],
        agree: Callable[[Sequence[bytes]], bytes | None],
    ) -> None:
        self._settings = settings
        self._state = state
        self._fingerprint = fingerprint
        self._open_replica = open_replica
        self._agree = agree
        self._begun = False

    def load(self, order: Mapping[str, Any], user: Mapping[str, Stateful]) -> dict[str, float]:
        """Load as ordered; return the seconds by part.

        Raises:
            DamagedError: what was to be loaded is not whole; something else has to be loaded.
            RuntimeError: nothing else is there, and the state is no longer that of the start.
        """
        tier = order["tier"]
        if tier == "scratch":
            if self._begun:
                raise RuntimeError(
                    "a damaged checkpoint was loaded in part: start the trainer anew"
                )
            return {}
        began = time.monotonic()
        if tier == "storage":
            meta = self._load_from_storage(tuple(order["tiers"]), int(order["iteration"]))
            seconds = {"storage": time.monotonic() - began}
        else:
            meta, seconds = self._load_from_memory(order)
        for name, held in user.items():
            if name not in meta["user"]:
                raise ValueError(f"the checkpoint has no state {name!r}: keep the state's names")
            held.load_state_dict(meta["user"][name])
        restore_random_state(meta["random"])
        return seconds

    def _load_from_memory(
        self, order: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, float]]:
        began = time.monotonic()
        iteration = int(order["iteration"])
        replica = self._open_replica(order["segments"][str(self._settings.rank)])
        try:
            snapshot = replica.snapshot(iteration)
        except ArenaError as error:
            raise DamagedError(str(error)) from error
        meta = decode(snapshot.meta)
        held = CheckedSections(snapshot, self._state.sections)
        self._begun = True
        self._state.restore(held, meta)
        held.check()
        return meta, {"restore": time.monotonic() - began}

    def _load_from_storage(self, tiers: tuple[str, ...], iteration: int) -> dict[str, Any]:
        return self._state.restore_persistent(
            PersistentPart(
                tiers,
                iteration,
                self._settings.rank,
                self._settings.job,
                self._fingerprint,
                storage_pacer(reading=True),
                self._agree,
            )
        )
