"""What one agent says of itself, under its lease."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from castor_policy.agents.documents import Document
from castor_policy.agents.evidence import Sight


class State(StrEnum):
    """What an agent says of itself."""

    IDLE = "idle"
    """Fills no machine: a standby, or the job has not begun."""
    GATHERED = "gathered"
    """Its trainers are stopped and its holdings of this generation are in the report."""
    LOADING = "loading"
    RUNNING = "running"
    """Its trainers have loaded and train; `redundant` says whether its replicas are re-made."""
    FAILED = "failed"
    """A trainer of this generation ended, hung, or could not be loaded."""
    FINISHED = "finished"
    """Every trainer of this generation ended well."""


@dataclass(frozen=True, slots=True)
class Life:
    """Where and since when one life of an agent runs: what tells whether it is dead.

    Attributes:
        host: name of its machine.
        boot_id: random id of that machine's kernel since it was started (Linux); "" unknown.
        pid_namespace: in which `pid` counts: containers of one machine have one each.
        pid: its process.
        started_ticks: when that process began, in the kernel's clock ticks since the start: a
            later process of the same number has another time.
        since_ns: CLOCK_REALTIME of its start.
    """

    host: str = ""
    boot_id: str = ""
    pid_namespace: str = ""
    pid: int = 0
    started_ticks: int = 0
    since_ns: int = 0


@dataclass(frozen=True, slots=True)
class AgentReport(Document):
    """One agent's word, under its lease: gone when the agent is.

    Attributes:
        agent: its name.
        incarnation: which life of it; a restarted agent has a new one.
        standby: it was started as one; it fills a machine only when one is lost.
        address: of its checkpoint server, host:port.
        generation: which generation `state` and all below speak of.
        state: see `State`.
        holdings: for each rank (as a string), the complete iterations of its part held here.
        persistent: complete persistent iterations that it sees; None while storage has not
            answered, which is not "none".
        rendezvous: host:port that its first trainer would use (GATHERED).
        parked: ranks whose trainers are kept, to go on in place (GATHERED).
        reason: what failed (FAILED): of what was seen, what says most.
        kind: of that, a `SightKind`.
        seen: all that it saw fail in this generation, in order; more may come after `FAILED`.
        ended: ranks whose trainers said that they had finished, and ended with code 0.
        iteration: the newest iteration that its trainers finished in this generation.
        complete: the newest of which they know that all replicas have arrived everywhere.
        redundant: all replicas that belong here are here.
        held: the iteration at which all its trainers hold, as they were asked to; 0: they do not.
        persisted: `held`, once it counts in a persistent tier.
        in_vain: how often `held` was to be persisted and no tier took this machine's share.
        memory_bytes: checkpoint memory that it has taken.
        persist_failure: why its last share of a persistent checkpoint was not written; else "".
        load_seen: the newest generation of which this life has seen that it loads, with a part in
            it or without: should the store lose the plan, somebody knows.
        plan_seen: the newest generation of which this life has seen any plan. Nothing is written
            for it alone: what an agent says to a store that lost its data tells it.
        left_generation: the newest generation that completed what `holdings` says of an earlier
            life's memory (IDLE); 0 otherwise.
        standing: for each rank (as a string) how far it has come (`trainer_watch.Position`), once
            no trainer here has shown a sign of life for the job's limit; empty while they go on.
        unreached: incarnations of the agents around it that it cannot reach (`neighbours`).
        life: where and since when it runs.
        proof: that it knows the job's secret; "" under TLS, which proves it in every handshake.
        domain: failure domain that its machine fails with (a rack, a switch), by name; "": unknown.
        script: digest of its script's files (`admission.Software`).
        versions: of Castor, Python and torch, by name.
    """

    agent: str
    incarnation: str
    standby: bool
    address: str
    generation: int = 0
    state: str = State.IDLE
    holdings: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    persistent: tuple[int, ...] | None = ()
    rendezvous: str = ""
    parked: tuple[int, ...] = ()
    reason: str = ""
    kind: str = ""
    seen: tuple[Sight, ...] = ()
    ended: tuple[int, ...] = ()
    iteration: int = 0
    complete: int = 0
    redundant: bool = False
    held: int = 0
    persisted: int = 0
    in_vain: int = 0
    memory_bytes: int = 0
    persist_failure: str = ""
    load_seen: int = 0
    plan_seen: int = 0
    left_generation: int = 0
    standing: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    unreached: tuple[str, ...] = ()
    life: Life = Life()
    proof: str = ""
    domain: str = ""
    script: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def _restored(cls, record: dict[str, Any]) -> dict[str, Any]:
        State(record.get("state", State.IDLE))
        holdings = {rank: tuple(held) for rank, held in record["holdings"].items()}
        persistent = record["persistent"]
        standing = {rank: tuple(reached) for rank, reached in record["standing"].items()}
        return record | {
            "holdings": holdings,
            "persistent": None if persistent is None else tuple(persistent),
            "standing": standing,
            "life": Life(**record.get("life", {})),
            "seen": tuple(Sight(**one) for one in record.get("seen", ())),
            "parked": tuple(record.get("parked", ())),
            "ended": tuple(record.get("ended", ())),
            "unreached": tuple(record.get("unreached", ())),
        }
