"""What is seen to fail, and how much each sight says about where the fault lies.

A process that dies takes the others with it: their collectives fail a moment later, or a moment
sooner than anybody notices the death itself. So a lost connection is a symptom, wherever it is
seen, and a rank that only lost its connection is never named as the cause.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

WORDS_LENGTH = 300
"""A sight is quoted in the plan and in events: longer words are cut."""


class SightKind(StrEnum):
    """What was seen, or what the root concluded."""

    LEASE = "lease"
    """A machine's lease expired: it is gone, or cut off."""
    SILENT = "silent"
    """A machine's agent renews its lease and answers nothing; see `patience`."""
    UNREACHED = "unreached"
    """A machine's neighbours have no connection to it, and get none; see `neighbours`."""
    AGENT = "agent"
    """An agent was restarted, or does not answer; its trainers die with it."""
    ISOLATED = "isolated"
    """A machine says of itself that it was cut off or left behind."""
    SIGNAL = "signal"
    """A trainer was killed from outside."""
    EXIT = "exit"
    """A trainer ended by itself: with an error of its own, or with 0 before it had finished."""
    HANG = "hang"
    """A trainer's process stands still."""
    MEMORY = "memory"
    """The parts do not fit into a machine, or do not belong to this job."""
    CORRUPT = "corrupt"
    """No source had an intact part for a rank."""
    FETCH = "fetch"
    """A machine reached no source for a rank's part: it is cut off, or they are."""
    START = "start"
    """The plan came before a machine's gathering."""
    LEFT = "left"
    """A trainer ended with code 0 while others still trained."""
    STALL = "stall"
    """No trainer goes on, and this rank is the one that the others wait for."""
    CONNECTION = "connection"
    """A trainer ended because a connection to another one broke."""
    UNKNOWN = "unknown"
    """The root: nobody saw what failed."""


_STRENGTH: dict[str, int] = {
    SightKind.LEASE: 0,
    SightKind.SILENT: 0,
    SightKind.UNREACHED: 0,
    SightKind.AGENT: 0,
    SightKind.ISOLATED: 0,
    SightKind.SIGNAL: 1,
    SightKind.EXIT: 2,
    SightKind.HANG: 2,
    SightKind.MEMORY: 2,
    SightKind.CORRUPT: 2,
    SightKind.START: 2,
    SightKind.STALL: 2,
    SightKind.LEFT: 3,
    SightKind.FETCH: 4,
    SightKind.CONNECTION: 4,
    SightKind.UNKNOWN: 5,
}

GONE = (SightKind.LEASE, SightKind.SILENT, SightKind.UNREACHED)
"""The machine itself is lost: another takes its place."""

AT_ONCE = 1
"""Sights up to this strength need no other beside them: nothing else makes them happen."""

OWN = 2
"""Sights up to this strength speak of their own rank or machine; the others are symptoms."""

_CRASHES = frozenset({4, 5, 6, 7, 8, 11, 31})  # ILL TRAP ABRT BUS FPE SEGV SYS: a program's own

_LOST_PEER = re.compile(
    r"gloo/transport|Connection (?:closed|reset) by (?:remote )?peer \[|NCCL|nccl[A-Z]\w+Error"
    r"|Dist(?:Backend|Network|Store)Error|\bTCPStore\b|ProcessGroup\w* |recvValue failed"
    r"|Socket Timeout|Application timeout caused pair closure|UCC ?error|RendezvousConnectionError"
    r"|collective operation timeout|remote process (?:has )?exited|\bLostRankError\b",
)
"""What torch's own transports say once a peer has gone, in the last traceback of a trainer.

And what Castor's groups do where a script goes on in place, but meets it outside `iteration()`."""


_DIES = re.compile(r"Traceback \(most recent|terminate called|Watchdog caught|Fatal Python error")


@dataclass(frozen=True, slots=True)
class Sight:
    """One thing that an agent saw go wrong.

    Attributes:
        rank: of which rank; -1 for its machine.
        kind: see `SightKind`.
        said: in words, after "rank N" or "machine N".
        words: what the process said last: the exception, or argparse's complaint; "" if nothing.
    """

    rank: int
    kind: str
    said: str
    words: str = ""

    def text(self) -> str:
        """Return it as a sentence's beginning: "rank 1 was killed by signal 9"."""
        return self.said if self.rank < 0 else f"rank {self.rank} {self.said}"


@dataclass(frozen=True, slots=True)
class Culprit:
    """Who is held responsible for a failure.

    Attributes:
        machine: its place.
        rank: of the trainer at fault; -1 for the machine or its agent as a whole.
        agent: that filled the place.
        kind: see `SightKind`.
        cause: in words: "rank 1 was killed by signal 9".
        words: the process's own last ones; "" if it had none.
    """

    machine: int
    rank: int
    agent: str
    kind: str
    cause: str
    words: str = ""


def strength(kind: str) -> int:
    """Return how near the cause a sight of this kind is; 0 is nearest."""
    return _STRENGTH.get(kind, OWN)


def strongest(seen: Iterable[Sight]) -> Sight:
    """Return the sight that says most; of equals the first."""
    return min(seen, key=lambda sight: strength(sight.kind))


def tells_of_lost_peer(text: str) -> bool:
    """Whether a trainer's last words are those of a process whose peer has gone.

    Args:
        text: the end of its log. Only what torch's transports say counts: a script's own
            ConnectionResetError is an error of its own. And only what was said from its first
            traceback on, or last: transports warn of this and that while they start.
    """
    begins = _DIES.search(text)
    lines = text[begins.start() :] if begins else text.rstrip().rpartition("\n")[2]
    return any(_LOST_PEER.search(line) for line in lines.splitlines() if not line.startswith("[W"))


def sight_of_end(
    rank: int, code: int, words: str, *, lost_peer: bool = False, left_early: bool = False
) -> Sight:
    """Return what a trainer's end shows.

    Args:
        rank: the trainer's.
        code: of its end; negative for a signal, as in `subprocess`.
        words: its last words, "" if it had none.
        lost_peer: they are those of `tells_of_lost_peer`.
        left_early: it ended with 0 and had not said that it had finished.
    """
    quoted = f": {words[:WORDS_LENGTH]}" if words else ""
    if code < 0:
        crashed = -code in _CRASHES
        kind = SightKind.EXIT if crashed else SightKind.SIGNAL
        if crashed and lost_peer:
            kind = SightKind.CONNECTION  # a watchdog aborts a process whose peer has gone
        return Sight(rank, kind, f"was killed by signal {-code}{quoted}", words[:WORDS_LENGTH])
    if code == 0:
        early = " before it had finished training" if left_early else ""
        kind = SightKind.EXIT if left_early else SightKind.LEFT
        return Sight(rank, kind, f"exited with code 0{early}")
    kind = SightKind.CONNECTION if lost_peer else SightKind.EXIT
    return Sight(rank, kind, f"exited with code {code}{quoted}", words[:WORDS_LENGTH])
