"""From the event log of a real run to one recovery: who did what, from the failure to training.

`castor_records.recoveries` says how long each phase of an outage took; what a trainer, a
machine's memory and its neighbours did meanwhile is read here, for pictures, tables and Perfetto.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from castor_policy.placement import place
from castor_records.events.event import (
    E,
    Entry,
    Event,
    agent_of,
    generation_of,
    machine_of,
    of_kind,
    rank_of,
)
from castor_records.events.failures import (
    JOINED,
    Detected,
    Failed,
    Redundant,
    Resumed,
    Retrieved,
    RunStarted,
    TrainerStarted,
)
from castor_records.events.training import CheckpointCompleted, IterationEnded
from castor_records.phases import Span
from castor_records.recoveries import Recovery, recoveries

_NS_PER_S = 1_000_000_000


class Doing(StrEnum):
    """What a trainer does."""

    ITERATION = "iteration"
    """An iteration that counts."""
    REDONE = "redone"
    """One that had ended, but is not in the checkpoint that was loaded: it is done again."""
    CUT_OFF = "cut_off"
    """The iteration in flight when something failed."""
    STARTING = "starting"
    """From the fork until the script asks what to load."""
    JOINING = "joining"
    """It was there before: until it has met the others and asks what to load."""
    WAITING = "waiting"
    """It asks, and its part is not in its machine's memory yet."""
    LOADING = "loading"
    """Checking and copying its part into the live state."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A trainer did one thing from `start_ns` to `end_ns`; `iteration` where it is one."""

    doing: Doing
    start_ns: int
    end_ns: int
    iteration: int | None = None


@dataclass(frozen=True, slots=True)
class Trainer:
    """What the trainers of one rank did, one after the other."""

    rank: int
    stretches: tuple[Stretch, ...]


@dataclass(frozen=True, slots=True)
class Retrieval:
    """A part has arrived in a machine's checkpoint memory.

    Attributes:
        rank: whose part it is.
        machine: where it was needed.
        own: the machine trains this rank; else it is a replica kept for another.
        source: as the log has it: "own_memory", "peer:AGENT", "storage" or "scratch".
        holder: the machine that sent it, None if none did or the log does not tell.
        start_ns, end_ns: of the transfer; equal where nothing was sent.
        size_bytes: what was sent.
    """

    rank: int
    machine: int
    own: bool
    source: str
    holder: int | None
    start_ns: int
    end_ns: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine: the agents that filled it, first to last (no names if the log has none)."""

    machine: int
    agents: tuple[str, ...]
    failed: bool
    trainers: tuple[Trainer, ...]


@dataclass(frozen=True, slots=True)
class RecoveryTimeline:
    """One outage. Times are those of the log: nanoseconds from the start of the run.

    Attributes:
        recovery: the same in numbers.
        start_ns: the failure; its detection where nothing was injected.
        end_ns: the end of the next iteration; of the log if there was none.
        spans: its phases, without a gap from start to end; empty ones are left out.
        machines: by number.
        retrievals: by time, replicas for others among them.
        redundant_ns: when every machine held all that belongs there again; None: not in the log.
        entries: of the log during the outage, iterations and checkpoints left out.
    """

    recovery: Recovery
    start_ns: int
    end_ns: int
    spans: tuple[Span, ...]
    machines: tuple[Machine, ...]
    retrievals: tuple[Retrieval, ...]
    redundant_ns: int | None
    entries: tuple[Entry[Event], ...]


def read_recoveries(entries: Iterable[Entry[Event]]) -> list[RecoveryTimeline]:
    """Return every recovery of a real run, in order.

    Args:
        entries: the merged log of the launcher and all agents.

    Raises:
        ValueError: it is no real run's log: it has no `run_started` with its ranks.
    """
    log = _Log(sorted(entries, key=lambda entry: entry.time_ns))
    return [_timeline(log, recovery) for recovery in recoveries(log.entries)]


def choose(found: Sequence[RecoveryTimeline], generation: int | None) -> RecoveryTimeline:
    """Return the recovery that tried `generation`; without one, the first.

    Raises:
        ValueError: there is none; the message says which there are.
    """
    if not found:
        raise ValueError("nothing failed in this run: there is no recovery to show")
    if generation is None:
        return found[0]
    for one in found:
        if generation in one.recovery.generations:
            return one
    known = ", ".join(str(g) for one in found for g in one.recovery.generations)
    raise ValueError(f"no recovery led to generation {generation}; there are {known}")


class _Log:
    """A real run's events, and what its first one says of the job."""

    def __init__(self, entries: Sequence[Entry[Event]]) -> None:
        self.entries = entries
        started = (entry.event for entry in of_kind(entries, RunStarted))
        first = next((event for event in started if event.is_measured), None)
        if first is None:
            raise ValueError(
                "this is no log of a real run: name the folder of a `castor train`, or all of its "
                "launcher.jsonl and agents/*/events.jsonl"
            )
        self.machines = first.machines or 0
        self.ranks = first.ranks or 0
        self.replicas = place(first.placement or "", self.machines, first.replicas or 0).replicas

    @property
    def ranks_per_machine(self) -> int:
        return self.ranks // self.machines

    def in_generations(self, kind: type[E], generations: Sequence[int]) -> list[Entry[E]]:
        return [
            entry
            for entry in of_kind(self.entries, kind)
            if generation_of(entry.event) in generations
        ]

    def filled_by(self, start_ns: int, end_ns: int) -> dict[int, list[str]]:
        """Return the agents that fill each machine from `start_ns` to `end_ns`, in order.

        The log names an agent only where something happened to it; the others stay unnamed.
        """
        agents: dict[int, list[str]] = {machine: [] for machine in range(self.machines)}
        for entry in self.entries:
            machine, agent = machine_of(entry.event), agent_of(entry.event)
            if entry.time_ns > end_ns or machine not in agents or not agent:
                continue
            if entry.time_ns < start_ns:
                agents[machine].clear()
            if agents[machine][-1:] != [agent]:
                agents[machine].append(agent)
        return agents


def _timeline(log: _Log, recovery: Recovery) -> RecoveryTimeline:
    start_ns = recovery.start_ns
    spans = recovery.spans()
    total = recovery.seconds["total"]
    last_ns = log.entries[-1].time_ns
    end_ns = last_ns if total is None else spans[-1].end_ns if spans else start_ns
    retrievals = _retrievals(log, recovery)
    agents = log.filled_by(start_ns, end_ns)
    per_machine = log.ranks_per_machine
    machines = tuple(
        Machine(
            machine,
            tuple(agents[machine]),
            machine in recovery.machines,
            tuple(
                _trainer(log, recovery, rank)
                for rank in range(machine * per_machine, (machine + 1) * per_machine)
            ),
        )
        for machine in range(log.machines)
    )
    return RecoveryTimeline(
        recovery,
        start_ns,
        end_ns,
        spans,
        machines,
        retrievals,
        _redundant_ns(log, recovery),
        tuple(
            entry
            for entry in log.entries
            if start_ns <= entry.time_ns <= end_ns
            and not isinstance(entry.event, IterationEnded | CheckpointCompleted)
        ),
    )


def _retrievals(log: _Log, recovery: Recovery) -> tuple[Retrieval, ...]:
    found = log.in_generations(Retrieved, recovery.generations[-1:])
    until_ns = found[-1].time_ns if found else 0
    agents = log.filled_by(until_ns, until_ns)
    return tuple(_retrieval(log, entry, agents) for entry in found)


def _retrieval(log: _Log, entry: Entry[Retrieved], agents: dict[int, list[str]]) -> Retrieval:
    event = entry.event
    rank = -1 if event.rank is None else event.rank
    machine = -1 if event.machine is None else event.machine
    source = event.source or ""
    return Retrieval(
        rank,
        machine,
        event.own is True,
        source,
        _holder(log, rank, machine, source, agents),
        entry.time_ns - _ns(event.seconds),
        entry.time_ns,
        event.bytes or 0,
    )


def _holder(
    log: _Log, rank: int, machine: int, source: str, agents: dict[int, list[str]]
) -> int | None:
    """Return the machine that a peer's name stands for, as far as the log and placement tell."""
    kind, _, agent = source.partition(":")
    if kind != "peer":
        return None
    shard = rank // log.ranks_per_machine
    able = [one for one in log.replicas[shard] if one != machine]
    named = [one for one in able if agents[one][-1:] == [agent]]
    if not named:
        named = [one for one in able if not agents[one]]
    return named[0] if len(named) == 1 else None


def _redundant_ns(log: _Log, recovery: Recovery) -> int | None:
    """Return when memory held all replicas again.

    What was loaded from storage is not in memory at all before the next checkpoint.
    """
    last = recovery.generations[-1:]
    first: dict[int, int] = {}
    if recovery.tier in ("own_memory", "peer"):
        wanted = log.machines
        for whole in log.in_generations(Redundant, last):
            first.setdefault(whole.event.machine, whole.time_ns)
    else:
        wanted = log.ranks
        for complete in log.in_generations(CheckpointCompleted, last):
            first.setdefault(complete.event.rank, complete.time_ns)
    return max(first.values()) if len(first) == wanted else None


def _trainer(log: _Log, recovery: Recovery, rank: int) -> Trainer:
    """Follow one rank from the training that the failure ended to the one that followed."""
    first, last = recovery.generations[0], recovery.generations[-1]
    own = [entry for entry in log.entries if rank_of(entry.event) == rank]
    ended = list(of_kind(own, IterationEnded))
    before = [entry for entry in ended if entry.event.generation < first]
    newest = max((entry.event.generation for entry in before), default=-1)
    stretches = []
    for entry in before:
        if entry.event.generation == newest:
            kept = recovery.iteration is None or entry.event.iteration <= recovery.iteration
            stretches.append(_iteration(entry, Doing.ITERATION if kept else Doing.REDONE))
    if stretches:
        stop_ns = _stopped_ns(log, rank, first, recovery.start_ns)
        since_ns = stretches[-1].end_ns
        if stop_ns > since_ns:
            stretches.append(Stretch(Doing.CUT_OFF, since_ns, stop_ns))
    for generation in recovery.generations:
        stretches += _start_up(log, own, generation)
    stretches += [_iteration(e, Doing.ITERATION) for e in ended if e.event.generation == last]
    return Trainer(rank, tuple(stretches))


def _iteration(entry: Entry[IterationEnded], doing: Doing) -> Stretch:
    took_ns = _ns(entry.event.seconds)
    return Stretch(doing, entry.time_ns - took_ns, entry.time_ns, entry.event.iteration)


def _stopped_ns(log: _Log, rank: int, generation: int, start_ns: int) -> int:
    """Return when a rank's training stopped: by its own failure, else once one was detected."""
    struck = [
        entry.time_ns
        for entry in of_kind(log.entries, Failed)
        if entry.time_ns >= start_ns
        and (
            entry.event.rank == rank
            or (
                entry.event.machine == rank // log.ranks_per_machine
                and entry.event.failure == "hardware"
            )
        )
    ]
    seen = log.in_generations(Detected, (generation,))
    return min([*struck, seen[0].time_ns])


def _start_up(log: _Log, own: Sequence[Entry[Event]], generation: int) -> list[Stretch]:
    """Return what a trainer of `generation` did up to its first iteration, or to its end."""
    mine = [entry for entry in own if generation_of(entry.event) == generation]
    joined = next((entry for entry in mine if isinstance(entry.event, JOINED)), None)
    if joined is None:
        return []
    begun = joined.time_ns
    starting = Doing.STARTING if isinstance(joined.event, TrainerStarted) else Doing.JOINING
    resumed = next(of_kind(mine, Resumed), None)
    if resumed is None:
        following = log.in_generations(Detected, (generation + 1,))
        end_ns = following[0].time_ns if following else log.entries[-1].time_ns
        return [Stretch(starting, begun, max(begun, end_ns))]
    # What it says of itself was measured up to the moment at which it said so.
    said = resumed.event
    loading_ns = sum(_ns(seconds) for seconds in (said.verify, said.restore, said.storage))
    loading = max(begun, resumed.time_ns - loading_ns)
    waiting = max(begun, loading - _ns(said.wait))
    edges = [begun, waiting, loading, resumed.time_ns]
    doings = (starting, Doing.WAITING, Doing.LOADING)
    return [
        Stretch(doing, since_ns, until_ns)
        for doing, (since_ns, until_ns) in zip(doings, pairwise(edges), strict=True)
        if until_ns > since_ns
    ]


def _ns(seconds: float | None) -> int:
    return round((seconds or 0.0) * _NS_PER_S)


_HOW = re.compile(r"\s*\[/[^\]]*\]\s*")


def in_short(cause: str, length: int = 70) -> str:
    """Return why something failed in one short line: without source paths, and cut."""
    line = _HOW.sub(" ", cause.partition("\n")[0]).strip()
    return line if len(line) <= length else line[: length - 3].rstrip() + "..."
