"""What an operator is, and what it is told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class OperatorError(Exception):
    """No machine is on its way; the request may be tried again."""


@dataclass(frozen=True, slots=True)
class JobToJoin:
    """What a new machine's agent has to know, and where the operator may write.

    Attributes:
        job: its name.
        run: which run of that name.
        store: its store's URL.
        secret: the file with its secret, on this machine.
        folder: for the operator's logs; made when it is needed.
        start_here: starts a standby on this computer and returns its name; None where nobody can.
    """

    job: str
    run: str
    store: str
    secret: Path
    folder: Path
    start_here: Callable[[], Awaitable[str]] | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One machine that is asked for.

    Attributes:
        name: GENERATION-MACHINE, the same for the same need.
        agent: a name that the new machine's agent can have: no other one of the job has it.
    """

    name: str
    agent: str


class Operator(Protocol):
    """Brings machines to a job.

    Attributes:
        patience_s: so long a machine may be on its way. The root asks again every minute while
            nobody comes; before that time has passed, nothing more is brought for it.
    """

    patience_s: float

    async def provide(self, request: Request) -> str:
        """Bring one more machine that runs `castor agent --standby`; say in words what comes.

        Returns once the machine is on its way, or may be: never for sure twice. Several requests
        are served at a time; a call may be cancelled.

        Raises:
            OperatorError: for sure none is on its way.
        """
        ...


OperatorMaker = Callable[[str, JobToJoin], Operator]
"""Makes an operator from its URL without its name and the colon; raises InputError where that is
wrong. Nothing is asked for yet."""
