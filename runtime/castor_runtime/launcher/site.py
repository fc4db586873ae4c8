"""Where the agents of a run are: on this machine, or on hosts that somebody keeps for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from castor_runtime.stores.embedded import HOST


@dataclass(frozen=True, slots=True)
class Place:
    """Where one agent runs.

    Attributes:
        environment: what the agent and its trainers find set besides.
        enter: module:function that its process calls before all else; "" for none.
        host: what that function is called with.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    enter: str = ""
    host: str = ""


class Site(Protocol):
    """The hosts of one run's agents."""

    @property
    def gateway(self) -> str:
        """Address at which its hosts reach what this machine serves; "" for the loopback alone."""
        ...

    def open(self, *, machines: int, standbys: int, log: Path) -> None:
        """Have it ready for so many agents; `log` takes what its own processes say.

        Raises:
            InputError: it cannot hold them.
        """
        ...

    def close(self) -> None:
        """Leave it as it was found."""
        ...

    def address(self, agent: str) -> str:
        """Return the address that an agent listens at.

        Raises:
            InputError: no host is left for it.
        """
        ...

    def place(self, agent: str) -> Place:
        """Return where an agent runs.

        Raises:
            InputError: no host is left for it.
        """
        ...

    def left(self, agent: str) -> None:
        """Hear that an agent's process has ended; it may be started again."""
        ...

    def to_json(self) -> dict[str, Any] | None:
        """Return what run.json says of it as `cluster`; None for nothing."""
        ...


class ThisMachine:
    """All agents are processes of this machine, which meet at its loopback."""

    gateway = ""

    def open(self, *, machines: int, standbys: int, log: Path) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""

    def address(self, agent: str) -> str:  # noqa: ARG002 - the same for all
        """Return the loopback's address."""
        return HOST

    def place(self, agent: str) -> Place:  # noqa: ARG002 - the same for all
        """Return a place with nothing of its own."""
        return Place()

    def left(self, agent: str) -> None:
        """Nothing to do."""

    def to_json(self) -> dict[str, Any] | None:
        """Return None."""
        return None
