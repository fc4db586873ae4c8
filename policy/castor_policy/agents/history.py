"""What the plan remembers of machines: how often each failed, and which are set aside, and why.

A machine on which trainers fail again and again gives its place to a standby. One that was to fill
a place and cannot (no memory, no source that it reaches, a module that it lacks) is put aside, and
the next one is taken: that is the machine's failure, and no attempt of the job's. Whoever is set
aside fills no place until its agent is started again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

MOST_FAILURES = 64
"""So many failures are remembered: a plan stays a small document, whatever happens."""

MOST_ASIDE = 32
"""And so many machines that are set aside."""

ASIDE_FREE_OF_CHARGE = 4
"""With so many set aside it is the job that fails, whoever fills its places: attempts count."""


@dataclass(frozen=True, slots=True)
class PastFailure:
    """One failure that a machine was held responsible for.

    Attributes:
        agent: of the machine.
        at_s: seconds from the job's start, by the clock on the wall.
        cause: in words.
    """

    agent: str
    at_s: float
    cause: str


@dataclass(frozen=True, slots=True)
class SetAside:
    """An agent that fills no place until it is started again.

    Attributes:
        agent: its name.
        incarnation: of the life that is set aside.
        reason: why, in words.
    """

    agent: str
    incarnation: str
    reason: str


def failures_of(history: Sequence[PastFailure], agent: str) -> list[PastFailure]:
    """Return what is remembered of one machine, oldest first."""
    return [one for one in history if one.agent == agent]


def often_failed(history: Sequence[PastFailure], agent: str, after: int) -> str:
    """Return why a machine is to be set aside; "" if it failed fewer than `after` times.

    Never with `after` 0.
    """
    failures = failures_of(history, agent)
    if not after or len(failures) < after:
        return ""
    span_s = failures[-1].at_s - failures[0].at_s
    return f"failed {len(failures)} times in {span_s:.0f} s, at last: {failures[-1].cause}"


def forgiven(history: Sequence[PastFailure], agent: str) -> tuple[PastFailure, ...]:
    """Return the failures of the others: who was set aside, and comes back mended, starts anew."""
    return tuple(one for one in history if one.agent != agent)


def aside_now(aside: Sequence[SetAside], lives: Mapping[str, str]) -> tuple[SetAside, ...]:
    """Return those that are still set aside: an agent that was started again no longer is.

    Args:
        aside: as it was.
        lives: of each live agent its incarnation.
    """
    kept = [one for one in aside if lives.get(one.agent, one.incarnation) == one.incarnation]
    return tuple(kept[-MOST_ASIDE:])


def is_aside(aside: Collection[SetAside], agent: str, incarnation: str) -> bool:
    """Whether this life of an agent is set aside."""
    return any(one.agent == agent and one.incarnation == incarnation for one in aside)
