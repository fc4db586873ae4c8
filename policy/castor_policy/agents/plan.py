"""The plan: the one document that moves the job.

Phases follow each other in one order only, and a plan that comes late never turns a machine back.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from castor_policy.agents.documents import Document, int_rows
from castor_policy.agents.evidence import Culprit
from castor_policy.agents.history import PastFailure, SetAside


class Phase(StrEnum):
    """How far a generation has come. Only the root moves it on."""

    GATHER = "gather"
    """Trainers stop; agents say which iterations they hold; empty machines are filled."""
    LOAD = "load"
    """The iteration and the sources are decided; agents fetch, trainers start and train."""
    FINISHED = "finished"
    """Every trainer has ended well."""
    FAILED = "failed"
    """Given up; `reason` says why. What is complete in memory is kept, to go on from it."""
    STOPPED = "stopped"
    """Ended by its user; nothing is kept in memory. `castor resume` makes it runnable again."""


@dataclass(frozen=True, slots=True)
class Plan(Document):
    """The one document that moves the job: written by the root, in its term, obeyed by all.

    Attributes:
        generation: which attempt at running all trainers.
        term: of the root that wrote it; for reading only, the store fences.
        phase: see `Phase`.
        agents: for each machine the agent that fills it, "" while none does.
        incarnations: for each machine the incarnation of that agent.
        reason: what made this generation necessary.
        iteration: what every rank loads (phase LOAD); 0 for the start.
        tier: "own_memory", "peer", "storage" or "scratch": the slowest tier that is needed.
        sources: for each machine, the machines to load its shard from, in this order; its own
            number first where its own memory has it. Empty for "storage" and "scratch".
        addresses: for each machine the address of its agent's checkpoint server.
        rendezvous: host:port at which the trainers of this generation meet.
        in_place: some trainers stay from the generation before (phase LOAD): those that are started
            build their engines without them, and meet them when they load.
        attempts: generations since the last one that completed an iteration: all its replicas
            had arrived.
        thorough: a source was found bad: what is offered now is read against its checksums first.
        culprits: who is held responsible for the failure before; empty if nobody saw.
        seen: what else was seen of it, a sentence each.
        words: what that failure said, if it was a trainer's own error; see `recurring_words`.
        reached: the newest iteration that was complete, or loaded, in any generation before; once
            the job has finished, the one that all ranks ended at.
        trained: an iteration has ended in some generation before.
        failures: which machines failed of late, oldest first; see `history`.
        aside: agents that fill no place until they are started again.
        fresh: machines whose agents came to fill them during the job and have not completed an
            iteration there.
        loaded: agents that the last generation was loaded on: what others hold is of the past.
            Empty in the first generation, and where nobody knows.
        unserved: machines that reached no source in the generation before.
        script: digest of the script that this generation trains with (phase LOAD); "" unknown.
        asked_for: the generation before did not fail: its user asked for this one.
        waits_for: what has to be done before this generation can train, for people; "" nothing.
    """

    generation: int
    term: int
    phase: str
    agents: tuple[str, ...]
    incarnations: tuple[str, ...]
    reason: str = ""
    iteration: int = 0
    tier: str = "scratch"
    sources: tuple[tuple[int, ...], ...] = ()
    addresses: tuple[str, ...] = ()
    rendezvous: str = ""
    in_place: bool = False
    attempts: int = 0
    thorough: bool = False
    culprits: tuple[Culprit, ...] = ()
    seen: tuple[str, ...] = ()
    words: str = ""
    reached: int = 0
    trained: bool = False
    failures: tuple[PastFailure, ...] = ()
    aside: tuple[SetAside, ...] = ()
    fresh: tuple[int, ...] = ()
    loaded: tuple[str, ...] = ()
    unserved: tuple[int, ...] = ()
    script: str = ""
    asked_for: bool = False
    waits_for: str = ""

    @classmethod
    def _restored(cls, record: dict[str, Any]) -> dict[str, Any]:
        Phase(record["phase"])
        if len(record["agents"]) != len(record["incarnations"]):
            raise ValueError("a Plan names an incarnation for each of its agents")
        return record | {
            "agents": tuple(record["agents"]),
            "incarnations": tuple(record["incarnations"]),
            "sources": int_rows(record["sources"]),
            "addresses": tuple(record["addresses"]),
            "culprits": tuple(Culprit(**one) for one in record.get("culprits", ())),
            "seen": tuple(record.get("seen", ())),
            "failures": tuple(PastFailure(**one) for one in record.get("failures", ())),
            "aside": tuple(SetAside(**one) for one in record.get("aside", ())),
            "fresh": tuple(record.get("fresh", ())),
            "loaded": tuple(record.get("loaded", ())),
            "unserved": tuple(record.get("unserved", ())),
        }

    @property
    def is_over(self) -> bool:
        """Whether the job has ended, one way or another."""
        return self.phase in (Phase.FINISHED, Phase.FAILED, Phase.STOPPED)

    @property
    def begins_anew(self) -> bool:
        """Whether it is a resumed job's first: nobody has a place yet, and as many are awaited."""
        return self.phase == Phase.GATHER and self.asked_for and not any(self.agents)

    def is_before(self, other: Plan) -> bool:
        """Whether this plan comes before `other`: late messages must not turn a machine back."""
        if self.generation != other.generation:
            return self.generation < other.generation
        return _ORDER[Phase(self.phase)] < _ORDER[Phase(other.phase)]

    def machine_of(self, agent: str, incarnation: str) -> int | None:
        """Return the machine that this life of `agent` fills; None if it fills none."""
        for machine, name in enumerate(self.agents):
            if name == agent and self.incarnations[machine] == incarnation:
                return machine
        return None


_ORDER = {Phase.GATHER: 0, Phase.LOAD: 1, Phase.FINISHED: 2, Phase.FAILED: 2, Phase.STOPPED: 3}
