"""What an engine says of its state: the one thing that an adapter for another engine writes.

Checkpointer, session and replication know a state by this alone. Which adapter stands for which
engine is said in `castor_runtime.trainer.engines`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from castor_runtime.pacing import Pacer
from castor_runtime.state.sections import Section, Sections


class Stateful(Protocol):
    """Anything of the user's that belongs in a checkpoint: a sampler, a tokenizer, a curriculum."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return the state: numbers, strings, lists, tuples, dicts, arrays, tensors."""
        ...

    def load_state_dict(self, state: Any, /) -> Any:
        """Set what `state_dict` returned."""
        ...


class DamagedError(Exception):
    """What was to be loaded is not whole; something else has to be loaded in its place."""


class NoPersistentFormError(ValueError):
    """There is no format in which persistent storage could hold this state."""


@dataclass(frozen=True, slots=True)
class PersistentPart:
    """One rank's part of a checkpoint in persistent storage.

    Attributes:
        tiers: where the job's persistent checkpoints lie, the nearest first.
        iteration: which one.
        rank: whose part.
        job: its name; a checkpoint of another one is refused.
        fingerprint: of the job's checkpoints.
        pacer: waits for the bytes that were read; None: there is no limit.
        agree: asked where there are several tiers, which may hold two writings of one iteration:
            takes the names of those that this rank can read, 16 bytes each, and returns the one
            that all ranks can, the same for all; None: there is none. Collective.
    """

    tiers: tuple[str, ...]
    iteration: int
    rank: int
    job: str
    fingerprint: str
    pacer: Pacer | None = None
    agree: Callable[[Sequence[bytes]], bytes | None] = lambda names: next(iter(names), None)


@runtime_checkable
class State(Protocol):
    """One rank's state, as an engine keeps it.

    Attributes:
        sections: where each of its tensors lies in the rank's part; the same in every life.
        clone_at_capture: names of sections that may change before the optimizer's update: they are
            copied at once, in `step`.
        trained: names of sections that only the update changes.
        optimizer: whose step is the update, and waits until the state may change; None: the script
            calls `Checkpointer.before_update` itself.
    """

    sections: tuple[Section, ...]
    clone_at_capture: frozenset[str]
    trained: frozenset[str]
    optimizer: torch.optim.Optimizer | None

    def stepped(self) -> None:
        """Take in that the script has called `Checkpointer.step`: before `iteration` is asked."""
        ...

    def iteration(self) -> int:
        """Return how many updates are done."""
        ...

    def device(self) -> torch.device:
        """Return where training computes."""
        ...

    def live(self) -> list[torch.Tensor | None]:
        """Return the live tensor of each section; None where it does not exist, or is in `meta`."""
        ...

    def meta(self) -> dict[str, Any]:
        """Return all that is no section: counters, schedules, options, as `meta.encode` takes it.

        Raises:
            ValueError: something cannot be held; names it.
        """
        ...

    def restore(self, held: Sections, meta: Mapping[str, Any]) -> None:
        """Set the live state. What is collective comes after `held.check`.

        Args:
            held: `sections`, as they are in the checkpoint.
            meta: what `meta` returned.

        Raises:
            DamagedError: the checkpoint is not whole; `restore` is called again, with another.
        """
        ...

    def restore_persistent(self, part: PersistentPart) -> dict[str, Any]:
        """Set the live state from persistent storage; may be collective. Return what `meta` said.

        Raises:
            DamagedError: the checkpoint is not whole; nothing was changed.
            NoPersistentFormError: this state is never in persistent storage.
        """
        ...

    def write_template(self, path: Path) -> None:
        """Write what the persistent format holds apart from sections and meta.

        Raises:
            NoPersistentFormError: there is no persistent format of this state.
        """
        ...

    def watch_first_iterations(
        self, user: Mapping[str, Stateful], tell: Callable[[str], None]
    ) -> Callable[[], bool] | None:
        """Return what is called after each iteration of a job's start until it returns True.

        It looks for what training depends on and nobody's state holds. None: nothing is looked at.

        Args:
            user: the user's own state, by name.
            tell: called with each warning.
        """
        ...


class InterruptedIteration(Protocol):
    """What makes an engine forget an iteration in which another rank was lost."""

    def throw_away(self) -> None:
        """Bring the engine to where it stood when it was new, but for what `restore` sets."""
        ...


@runtime_checkable
class Retraceable(Protocol):
    """What an `InterruptedIteration` has besides, whose engine goes by the order of its own work.

    All ranks go by the same, or by none.
    """

    def trace(self) -> bytes:
        """Return the order that was known when an iteration was thrown away; b"": none."""
        ...

    def retrace(self, trace: bytes) -> bool:
        """Go by what another rank's `trace` returned (b"": by none); False: it cannot be."""
        ...


@runtime_checkable
class Interruptible(Protocol):
    """What a state has besides, whose engine can go on in this process where a rank is lost."""

    def interrupted_iteration(self) -> InterruptedIteration:
        """Return what throws one away; asked once, while the engine is new.

        Raises:
            CannotSwapError: this engine cannot forget it: the process has to be restarted.
        """
        ...
