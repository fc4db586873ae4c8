"""Load what the agent says: from checkpoint memory, or from persistent storage."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from castor_runtime.arena import ArenaError, Replica
from castor_runtime.persistent.pacing import storage_pacer
from castor_runtime.trainer.agent_link import TrainerSettings
from castor_runtime.trainer.deepspeed_state import DeepSpeedState
from castor_runtime.trainer.meta import decode
from castor_runtime.trainer.random_state import restore_random_state
from castor_runtime.trainer.tensor_state import TensorState


class Stateful(Protocol):
    """Anything of the user's that belongs in a checkpoint: a sampler, a tokenizer, a curriculum."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return the state: numbers, strings, lists, tuples, dicts, arrays, tensors."""
        ...

    def load_state_dict(self, state: Any, /) -> Any:
        """Set what `state_dict` returned."""
        ...


class DamagedError(Exception):
    """What was to be loaded is not whole."""


class Loader:
    """Sets a trainer's state to that of a checkpoint.

    Args:
        settings: of the trainer.
        state: what is set.
        fingerprint: of the job's checkpoints.
        open_replica: opens a replica by its segment's name.
    """

    def __init__(
        self,
        settings: TrainerSettings,
        state: DeepSpeedState | TensorState,
        fingerprint: str,
        open_replica: Callable[[str], Replica],
    ) -> None:
        self._settings = settings
        self._state = state
        self._fingerprint = fingerprint
        self._open_replica = open_replica

    def load(self, order: Mapping[str, Any], user: Mapping[str, Stateful]) -> dict[str, float]:
        """Load as ordered; return the seconds by part.

        Raises:
            DamagedError: what was to be loaded is not whole; nothing was changed.
        """
        tier = order["tier"]
        if tier == "scratch":
            return {}
        began = time.monotonic()
        if tier == "storage":
            meta = self._load_from_storage(Path(order["path"]), int(order["iteration"]))
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
            # Before anything is loaded: restoring is collective, and is not begun a second time.
            damaged = replica.verify(iteration, workers=2)
        except ArenaError as error:
            raise DamagedError(str(error)) from error
        if damaged:
            raise DamagedError(f"chunks {damaged[:8]} of iteration {iteration} are damaged")
        verified = time.monotonic()
        meta = decode(snapshot.meta)
        self._state.restore(torch.frombuffer(snapshot.data, dtype=torch.uint8), meta)
        seconds = {"verify": verified - began, "restore": time.monotonic() - verified}
        return meta, seconds

    def _load_from_storage(self, folder: Path, iteration: int) -> dict[str, Any]:
        from castor_runtime.persistent.deepspeed_format import load_rank  # noqa: PLC0415
        from castor_runtime.persistent.manifest import (  # noqa: PLC0415 - costs time, seldom used
            DamagedCheckpointError,
            ForeignStorageError,
        )

        state = self._state
        if not isinstance(state, DeepSpeedState):
            raise TypeError("plain tensors have no persistent form: train without --persist")
        try:
            loaded = load_rank(
                state.engine(),
                folder,
                iteration,
                self._settings.rank,
                job=self._settings.job,
                fingerprint=self._fingerprint,
                pacer=storage_pacer(reading=True),
                prepare=lambda meta: state.reshape(decode(meta)),
            )
        except (DamagedCheckpointError, ForeignStorageError) as error:
            raise DamagedError(str(error)) from error
        meta = decode(loaded.meta)
        state.restore_small(meta, loaded.extra)
        return meta
