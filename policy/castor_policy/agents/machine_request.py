"""What becomes of a request for a machine: it is served once, whoever serves it or takes over.

The root puts a request (`RequestMachine`), and puts it again under the same name while nobody comes
(`filling.REQUEST_AGAIN_S`). Who operates the job's machines serves it, and says so in the store
before the machine is asked for and after, so that it is known to all who serve and outlives them:

1. A request is claimed, by who finds the record as it was read, before a machine is asked for.
2. One that was claimed, or whose machine is on its way, is not served again before the operator's
   patience has ended, or the machine has come and is asked for again: who claimed it may have died
   after having asked. Two machines never come for one request of that time.
3. A machine that could not be asked for is asked for again: after 1 s, 2 s, 4 s and so on, up to
   every five minutes, for as long as it is needed.
4. A request of a generation whose machines are all there, or that is over, is needed no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from castor_policy.agents.documents import Document
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.store_keys import job_prefix

AGAIN_MAX_S: Final = 300.0
"""Longest time between two attempts to ask for a machine."""


class Progress(StrEnum):
    """How far it is with a request."""

    ASKING = "asking"
    COMING = "coming"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Served(Document):
    """The record of one request.

    Attributes:
        request: its name, GENERATION-MACHINE.
        progress: a `Progress`.
        attempts: how often a machine was asked for.
        at_s: since when it is so, CLOCK_REALTIME in seconds.
        agent: the name that the new machine's agent was told to have.
        words: what was brought, or why not.
    """

    request: str
    progress: str
    attempts: int
    at_s: float
    agent: str
    words: str = ""


class Step(StrEnum):
    """What is to be done about a request."""

    ASK = "ask for a machine"
    WAIT = "wait"
    DROP = "take the request out: it is served, or needed no more"


def next_step(
    served: Served | None, *, needed: bool, arrived: bool, now_s: float, patience_s: float
) -> tuple[Step, float]:
    """Return what to do about a request that is in the store, and after how many seconds to look.

    Args:
        served: its record; None before anybody served it.
        needed: as `is_needed` says.
        arrived: the agent that the record names has joined the job since.
        now_s: CLOCK_REALTIME.
        patience_s: a machine may be on its way for so long before another one is asked for.
    """
    if not needed:
        return Step.DROP, 0.0
    if served is None:
        return Step.ASK, 0.0
    if served.progress == Progress.FAILED:
        left_s = served.at_s + again_s(served.attempts) - now_s
        return (Step.WAIT, left_s) if left_s > 0 else (Step.ASK, 0.0)
    left_s = served.at_s + patience_s - now_s
    if left_s <= 0 or arrived:
        return Step.ASK, 0.0
    return (Step.DROP, 0.0) if served.progress == Progress.COMING else (Step.WAIT, left_s)


def again_s(attempts: int) -> float:
    """Return how long after its failure the last of so many attempts is followed by the next."""
    return min(2.0 ** min(attempts - 1, 30), AGAIN_MAX_S)


def is_needed(plan: Plan | None, request: str) -> bool:
    """Whether the job may still wait for the machine of a request.

    Args:
        plan: as it was last seen; it may be older than the request.
        request: its name.
    """
    generation = int(request.partition("-")[0])
    if plan is None or generation > plan.generation:
        return True
    return generation == plan.generation and plan.phase == Phase.GATHER


def served_prefix(job: str) -> str:
    """Prefix of the `Served` records, one key a request."""
    return f"{job_prefix(job)}served/"
