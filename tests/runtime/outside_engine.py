"""An engine that Castor does not know, and its adapter: all that somebody from outside writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from castor_runtime.state.protocol import NoPersistentFormError, PersistentPart, Stateful
from castor_runtime.state.sections import lay_out, views
from castor_runtime.trainer.engines import register


class Ledger:
    """Adds up what it is given; half of what matters is no tensor."""

    def __init__(self, size: int) -> None:
        self.sums = torch.zeros(size)
        self.entries: list[int] = []

    def train(self, value: int) -> None:
        self.sums.mul_(1.0001).add_(value)
        self.entries.append(value)


class LedgerState:
    """One rank's ledger."""

    clone_at_capture: frozenset[str] = frozenset()
    trained = frozenset(["sums"])
    optimizer: torch.optim.Optimizer | None = None

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.sections = lay_out([("sums", ledger.sums.dtype, tuple(ledger.sums.shape))])

    def stepped(self) -> None:
        pass  # the ledger counts by itself

    def iteration(self) -> int:
        return len(self._ledger.entries)

    def device(self) -> torch.device:
        return self._ledger.sums.device

    def live(self) -> list[torch.Tensor | None]:
        return [self._ledger.sums]

    def meta(self) -> dict[str, Any]:
        return {"entries": self._ledger.entries}

    def restore(self, part: torch.Tensor, meta: Mapping[str, Any]) -> None:
        self._ledger.sums.copy_(views(part, self.sections)["sums"])
        self._ledger.entries = list(meta["entries"])

    def restore_persistent(self, part: PersistentPart) -> dict[str, Any]:
        raise NoPersistentFormError(f"a ledger has no persistent form: {part.folder}")

    def write_template(self, path: Path) -> None:
        raise NoPersistentFormError(f"a ledger has no persistent form: {path}")

    def watch_first_iterations(
        self, user: Mapping[str, Stateful], tell: Callable[[str], None]
    ) -> None:
        del user, tell


register(f"{Ledger.__module__}.Ledger", LedgerState)
