"""What the agents keep in the store: the job, its plan, and a report of every agent.

Each document is JSON, so that an operator reads it with any etcd client. Unknown keys are an error:
an agent of another version must not act on half a document.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from enum import StrEnum
from typing import Any, Self, get_args, get_origin, get_type_hints

from castor_policy.agents.evidence import Culprit, Sight
from castor_policy.agents.history import PastFailure, SetAside

PROTOCOL = 2
"""Goes up when a document changes its meaning; agents of different protocols do not mix."""

_RUN = re.compile(r"[0-9a-f]{16}")


def check_run(run: str) -> None:
    """Raise ValueError unless `run` can be a run's identity."""
    if not _RUN.fullmatch(run):
        raise ValueError(f"a run is known by 16 hex digits, not by {run!r}")


class Document:
    """JSON both ways for a frozen dataclass."""

    def to_json(self) -> str:
        """Return the document as one line of JSON with sorted keys."""
        names = fields(self)  # type: ignore[arg-type]  # every subclass is a dataclass
        # Not `asdict`, which copies every value to its depth, and reports are written all the time.
        record = {item.name: getattr(self, item.name) for item in names}
        return json.dumps(record, sort_keys=True, separators=(",", ":"), default=asdict)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ValueError: it is not such a document, or of another version of Castor.
        """
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"a {cls.__name__} that is not JSON ({error}): {text[:200]}") from None
        known = {item.name for item in fields(cls)}  # type: ignore[arg-type]  # as above
        if not isinstance(record, dict):
            raise ValueError(f"no {cls.__name__}: {text[:200]}")  # noqa: TRY004 - the text is at fault
        if unknown := sorted(set(record) - known):
            raise ValueError(f"expected a {cls.__name__} of this version, got one with {unknown}")
        try:
            document = cls(**cls._restored(record))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"no whole {cls.__name__} ({error!r}): {text[:200]}") from None
        for name, hint in _hints(cls).items():
            if name in known and not _fits(getattr(document, name), hint):
                raise ValueError(f"{cls.__name__}.{name} must be {hint}: {text[:200]}")
        return document

    @classmethod
    def _restored(cls, record: dict[str, Any]) -> dict[str, Any]:
        return record


def _fits(value: object, hint: Any) -> bool:
    """Whether a value is of a field's type; what is read from JSON may be of any."""
    kind, of = get_origin(hint), get_args(hint)
    if kind is tuple:
        return isinstance(value, tuple) and all(_fits(item, of[0]) for item in value)
    if kind is Mapping:
        return isinstance(value, Mapping) and all(
            _fits(key, of[0]) and _fits(item, of[1]) for key, item in value.items()
        )
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if not isinstance(hint, type) or not isinstance(value, hint):
        return not isinstance(hint, type)
    return not is_dataclass(value) or all(
        _fits(getattr(value, name), kind) for name, kind in _hints(hint).items()
    )


_HINTS: dict[type, dict[str, Any]] = {}  # they are read from source text, which takes long


def _hints(kind: type) -> dict[str, Any]:
    if kind not in _HINTS:
        _HINTS[kind] = get_type_hints(kind)
    return _HINTS[kind]


def _tuples(rows: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) for row in rows)


@dataclass(frozen=True, slots=True)
class JobSpec(Document):
    """What a job is; written once, before any agent acts, and never changed.

    Attributes:
        job: its name; everything in the store and in shared memory is named after it.
        machines: N, the machines that train.
        ranks_per_machine: R, trainers on each.
        strategy: the placement's name.
        replicas: the placement: `replicas[i]` are the machines that hold shard i, i first.
        script: the training program, a path on every machine.
        arguments: its arguments.
        run: which run of that name, 16 hex digits: random, made by whoever makes the job. Memory,
            messages and processes of another run are never this one's, whatever they are called.
            "": taken from `started_ns`.
        started_ns: CLOCK_REALTIME when the job was made; event logs count from it.
        lease_s: an agent that has not renewed for so long is dead.
        hang_s: a trainer whose process has stood still for so long is hung.
        stall_factor: no sign of life for so many times the median iteration is a stall,
        stall_s: but never sooner than this.
        startup_s: a generation's trainers may import, load and compile for so long unseen.
        gather_s: a machine that does not stop its trainers and say what it holds, or does not take
            up a plan, for so long is treated as lost.
        storage_s: persistent storage may take so long to be read, where memory cannot serve.
        persist: where persistent checkpoints go; "" for none.
        persist_every_s: seconds between persistent checkpoints.
        persist_keep: how many of them are kept.
        chunk_bytes: size of a checkpoint chunk, the unit of checksums and of transfer.
        scheme: how checkpoint traffic is scheduled; "none": nothing is checkpointed.
        profile_iterations: iterations whose idle spans are averaged before a schedule is made.
        mu: share of an idle span that checkpoint traffic may use.
        buffer_bytes: R, memory for received chunks; 0: `buffer_parts` chunks.
        buffer_parts: p, sub-buffers that R is divided in.
        shortest_span_s: idle spans below it are left alone.
        paced_copy_bps: rate of a stand-in for a GPU's copy engine; 0: there is none.
        memory_limit_bytes: most CPU memory a machine may spend on checkpoints; 0: what there is.
        max_attempts: generations in a row without a new complete iteration after which the job
            gives up.
        set_aside_after: failures of one machine after which a standby takes its place; 0: never.
        set_aside_within_s: how long a failure counts for that.
        resumes: generations that the run has had before `castor resume` began it again: it waits
            for the agents that hold its kept memory rather than begin without them. 0: it is new.
        protocol: `PROTOCOL`.
        credentials: a mark by which an agent knows whether its secret is the job's; "" for none.
        allow_changed_script: agents may come with another script than the first one's.
    """

    job: str
    machines: int
    ranks_per_machine: int
    strategy: str
    replicas: tuple[tuple[int, ...], ...]
    script: str
    arguments: tuple[str, ...] = ()
    run: str = ""
    started_ns: int = 0
    lease_s: float = 5.0
    hang_s: float = 0.8
    stall_factor: float = 10.0
    stall_s: float = 300.0
    startup_s: float = 1800.0
    gather_s: float = 300.0
    storage_s: float = 600.0
    persist: str = ""
    persist_every_s: float = 10800.0
    persist_keep: int = 2
    chunk_bytes: int = 16 << 20
    scheme: str = "eager"
    profile_iterations: int = 5
    mu: float = 0.9
    buffer_bytes: int = 0
    buffer_parts: int = 4
    shortest_span_s: float = 0.005
    paced_copy_bps: int = 0
    memory_limit_bytes: int = 0
    max_attempts: int = 5
    set_aside_after: int = 3
    set_aside_within_s: float = 3600.0
    resumes: int = 0
    protocol: int = PROTOCOL
    credentials: str = ""
    allow_changed_script: bool = False

    def __post_init__(self) -> None:
        if not self.run:
            # Two jobs are never one by an omission: what was made at another time is another.
            made = f"{self.started_ns % (1 << 64):016x}"
            object.__setattr__(self, "run", made)
        check_run(self.run)

    @classmethod
    def _restored(cls, record: dict[str, Any]) -> dict[str, Any]:
        if record.get("protocol") != PROTOCOL:
            raise ValueError(
                f"job of protocol {record.get('protocol')!r}; this version speaks {PROTOCOL}: "
                "run the same version of Castor on every machine"
            )
        return record | {
            "replicas": _tuples(record["replicas"]),
            "arguments": tuple(record["arguments"]),
        }

    def ranks_of(self, machine: int) -> range:
        """Return the ranks that train on `machine`."""
        first = machine * self.ranks_per_machine
        return range(first, first + self.ranks_per_machine)

    def ranks_held_by(self, machine: int) -> list[int]:
        """Return the ranks whose part `machine` keeps a replica of, its own first."""
        shards = [machine]
        shards += [s for s, row in enumerate(self.replicas) if machine in row[1:]]
        return [rank for shard in shards for rank in self.ranks_of(shard)]


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
    """Ended by its user, who has written this; nothing is kept."""


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
        attempts: generations since the last one that completed an iteration: all its replicas
            had arrived.
        thorough: a source was found bad: what is offered now is read against its checksums first.
        culprits: who is held responsible for the failure before; empty if nobody saw.
        seen: what else was seen of it, a sentence each.
        words: what that failure said, if it was a trainer's own error; see `recurring_words`.
        reached: the newest iteration that was complete, or loaded, in any generation before.
        trained: an iteration has ended in some generation before.
        failures: which machines failed of late, oldest first; see `history`.
        aside: agents that fill no place until they are started again.
        fresh: machines whose agents came to fill them during the job and have not completed an
            iteration there.
        loaded: agents that the last generation was loaded on: what others hold is of the past.
            Empty in the first generation, and where nobody knows.
        unserved: machines that reached no source in the generation before.
        script: digest of the script that this generation trains with (phase LOAD); "" unknown.
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
    waits_for: str = ""

    @classmethod
    def _restored(cls, record: dict[str, Any]) -> dict[str, Any]:
        Phase(record["phase"])
        if len(record["agents"]) != len(record["incarnations"]):
            raise ValueError("a Plan names an incarnation for each of its agents")
        return record | {
            "agents": tuple(record["agents"]),
            "incarnations": tuple(record["incarnations"]),
            "sources": _tuples(record["sources"]),
            "addresses": tuple(record["addresses"]),
            "culprits": tuple(Culprit(**one) for one in record.get("culprits", ())),
            "seen": tuple(record.get("seen", ())),
            "failures": tuple(PastFailure(**one) for one in record.get("failures", ())),
            "aside": tuple(SetAside(**one) for one in record.get("aside", ())),
            "fresh": tuple(record.get("fresh", ())),
            "loaded": tuple(record.get("loaded", ())),
            "unserved": tuple(record.get("unserved", ())),
        }

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
        reason: what failed (FAILED): of what was seen, what says most.
        kind: of that, a `FailureKind`.
        seen: all that it saw fail in this generation, in order; more may come after `FAILED`.
        ended: ranks whose trainers said that they had finished, and ended with code 0.
        iteration: the newest iteration that its trainers finished in this generation.
        complete: the newest of which they know that all replicas have arrived everywhere.
        redundant: all replicas that belong here are here.
        memory_bytes: checkpoint memory that it has taken.
        persist_failure: why its last share of a persistent checkpoint was not written; else "".
        standing: for each rank (as a string) how far it has come (`trainer_watch.Position`), once
            no trainer here has shown a sign of life for the job's limit; empty while they go on.
        life: where and since when it runs.
        proof: that it knows the job's secret; "" under TLS, which proves it in every handshake.
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
    reason: str = ""
    kind: str = ""
    seen: tuple[Sight, ...] = ()
    ended: tuple[int, ...] = ()
    iteration: int = 0
    complete: int = 0
    redundant: bool = False
    memory_bytes: int = 0
    persist_failure: str = ""
    standing: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    life: Life = Life()
    proof: str = ""
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
            "ended": tuple(record.get("ended", ())),
        }


def root_key(job: str) -> str:
    """Key of the root's name, under the root's lease; its create revision is the term."""
    return f"/castor/{job}/root"


def plan_key(job: str) -> str:
    """Key of the `Plan`."""
    return f"/castor/{job}/plan"


def job_prefix(job: str) -> str:
    """Prefix of everything about the job."""
    return f"/castor/{job}/"


def spec_key(job: str) -> str:
    """Key of the `JobSpec`."""
    return f"/castor/{job}/spec"


def layout_prefix(job: str) -> str:
    """Prefix of the sizes of the ranks' parts, one key a rank, made by its first trainer."""
    return f"/castor/{job}/layout/"


def persist_key(job: str) -> str:
    """Key of the iteration that is to be persisted next."""
    return f"/castor/{job}/persist"


def agents_prefix(job: str) -> str:
    """Prefix of the `AgentReport`s, one key an agent."""
    return f"/castor/{job}/agents/"


def requests_prefix(job: str) -> str:
    """Prefix of requests for machines: one key each, deleted by the operator that serves it."""
    return f"/castor/{job}/requests/"
