"""Where an agent's worker stands, where the job's plan stands, and which way each may go.

The tables say all that may happen; `docs/protocol.md` is drawn from them. The machines themselves
are written out in `worker` and `root`: what happens here is checked after every event, in tests and
while exploring, so that table and code cannot part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from castor_policy.agents.events import (
    AgentEvent,
    Fetched,
    FetchFailed,
    Finalised,
    Inspected,
    MemoryRefused,
    PeersAnswered,
    PlanChanged,
    PlanLost,
    ReportChanged,
    SessionOpened,
    Tick,
    TrainerEnded,
    TrainerHung,
    TrainerLostPeer,
    TrainerRefused,
    TrainerResumed,
    Verified,
    WishChanged,
)
from castor_policy.agents.plan import Phase


class Standing(StrEnum):
    """What a machine does in its generation."""

    IDLE = "idle"
    """It has no place in the plan."""
    GATHERING = "gathering"
    """It has a place; its trainers are stopped, and its memory is inspected."""
    GATHERED = "gathered"
    LOADING = "loading"
    RUNNING = "running"
    FAILED = "failed"
    FINISHED = "finished"


class ForbiddenTransitionError(AssertionError):
    """A machine went a way that its table does not have."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way from where a machine stands.

    Attributes:
        before: where it stands; a standing of a worker or a phase of the plan, "" for none.
        after: where it stands then.
        events: the events that may bring it there.
        why: in words.
    """

    before: str
    after: str
    events: tuple[type, ...]
    why: str


_PLAN = (PlanChanged, SessionOpened)  # a session that opens brings the plan along
_PARTS = (Verified, Fetched, FetchFailed, TrainerRefused)
_CUT_OFF = (Tick, PeersAnswered)

_IN_PLACE = (Standing.GATHERING, Standing.GATHERED, Standing.LOADING, Standing.RUNNING)

WORKER: tuple[Way, ...] = (
    Way(Standing.IDLE, Standing.GATHERING, _PLAN, "the plan gives it a place"),
    Way(Standing.GATHERING, Standing.GATHERED, (Inspected,), "it knows what its memory holds"),
    Way(Standing.GATHERED, Standing.LOADING, _PLAN, "the plan says what is loaded from where"),
    Way(Standing.LOADING, Standing.RUNNING, (TrainerResumed,), "all its trainers have loaded"),
    Way(Standing.LOADING, Standing.FINISHED, (Finalised,), "there was nothing left to train"),
    Way(Standing.RUNNING, Standing.FINISHED, (Finalised,), "all its trainers ended well"),
    Way(Standing.LOADING, Standing.FAILED, _PARTS, "no source has a part whole"),
    *(
        Way(here, Standing.FAILED, (MemoryRefused, TrainerHung), "memory or a trainer fails")
        for here in (Standing.GATHERING, Standing.GATHERED)
    ),
    *(
        Way(
            here,
            Standing.FAILED,
            (MemoryRefused, TrainerHung, TrainerEnded, TrainerLostPeer, *_CUT_OFF),
            "a trainer ends or hangs, memory is short, or it is cut off",
        )
        for here in (Standing.LOADING, Standing.RUNNING)
    ),
    *(
        Way(here, Standing.IDLE, _PLAN, "another has its place")
        for here in (*_IN_PLACE, Standing.FAILED, Standing.FINISHED)
    ),
    *(
        Way(here, Standing.GATHERING, _PLAN, "a generation begins")
        for here in (*_IN_PLACE[1:], Standing.FAILED, Standing.FINISHED)
    ),
    *(
        Way(here, Standing.FAILED, _PLAN, "the plan loads a generation that it did not gather in")
        for here in (Standing.IDLE, *_IN_PLACE, Standing.FINISHED)
    ),
)
"""Where a worker may go. An event that is not named leaves it where it stands."""

# Whatever the root sees may be the last straw.
_SEEN = (ReportChanged, PlanChanged, PlanLost, WishChanged, Tick)

ROOT: tuple[Way, ...] = (
    Way("", Phase.GATHER, _SEEN, "enough machines are there, or the plan is made again"),
    Way("", Phase.LOAD, _SEEN, "the store lost a plan that agents remember"),
    Way("", Phase.FAILED, _SEEN, "nobody has what the job was to go on from"),
    *(
        Way(here, Phase.STOPPED, _SEEN, "its user stops the job")
        for here in ("", Phase.GATHER, Phase.LOAD)
    ),
    Way(Phase.GATHER, Phase.GATHER, _SEEN, "a place is filled anew"),
    Way(Phase.GATHER, Phase.LOAD, _SEEN, "all have gathered, and it is decided what is loaded"),
    Way(Phase.GATHER, Phase.FAILED, _SEEN, "attempts are used up, or storage does not answer"),
    Way(Phase.LOAD, Phase.GATHER, _SEEN, "something failed, or is asked for: the next begins"),
    Way(Phase.LOAD, Phase.LOAD, _SEEN, "the store went back, and gets the plan again"),
    Way(Phase.LOAD, Phase.FINISHED, _SEEN, "all machines finished"),
    Way(Phase.LOAD, Phase.FAILED, _SEEN, "an error that comes again ends the job"),
)
"""What a root may write, by the plan that the store holds."""

Table: TypeAlias = Sequence[Way]


def check(table: Table, before: str, event: AgentEvent, after: str) -> None:
    """Check that a machine may have gone this way.

    Raises:
        ForbiddenTransitionError: it may not.
    """
    for way in table:
        if (way.before, way.after) == (before, after) and isinstance(event, way.events):
            return
    raise ForbiddenTransitionError(
        f"from {before or 'no plan'} to {after} by {type(event).__name__}: no table has it"
    )


def diagram(table: Table) -> str:
    """Return the table as a Mermaid state diagram, one line a way."""
    return "\n".join(["stateDiagram-v2", *_lines(table)])


def _lines(table: Iterable[Way]) -> Iterator[str]:
    words: dict[tuple[str, str], list[str]] = {}
    for way in table:
        said = words.setdefault((way.before or "[*]", way.after), [])
        if way.why not in said:
            said.append(way.why)
    for (before, after), why in words.items():
        yield f"    {before} --> {after}: {'; '.join(why)}"
