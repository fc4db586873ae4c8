"""From the event log of a real run to one recovery: who did what, from the failure to training.

`castor_runtime.launcher.run_result` says how long each part of an outage took; what a trainer, a
machine's memory and its neighbours did meanwhile is read here, for pictures, tables and Perfetto.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from castor_analysis.job_events import is_measured, outage_start_ns, whole
from castor_analysis.timeline import Span
from castor_policy.events import Event, EventKind
from castor_policy.placement import place
from castor_runtime.launcher.run_result import PARTS, Recovery, recoveries

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
    """A part came to be in a machine's checkpoint memory.

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
        parts: named as in `PARTS`, without a gap from start to end; empty ones are left out.
        machines: by number.
        retrievals: by time, replicas for others among them.
        redundant_ns: when every machine held all that belongs there again; None: not in the log.
        events: of the outage, by time, iterations and checkpoints left out.
    """

    recovery: Recovery
    start_ns: int
    end_ns: int
    parts: tuple[Span, ...]
    machines: tuple[Machine, ...]
    retrievals: tuple[Retrieval, ...]
    redundant_ns: int | None
    events: tuple[Event, ...]


def read_recoveries(events: Iterable[Event]) -> list[RecoveryTimeline]:
    """Return every recovery of a real run, in order.

    Args:
        events: the merged log of the launcher and all agents.

    Raises:
        ValueError: it is no real run's log: it has no `run_started` with its ranks.
    """
    log = _Log(sorted(events, key=lambda event: event.time_ns))
    return [_timeline(log, recovery) for recovery in recoveries(log.events)]


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

    def __init__(self, events: Sequence[Event]) -> None:
        self.events = events
        started = next((event for event in events if is_measured(event)), None)
        if started is None:
            raise ValueError(
                "this is no log of a real run: name the folder of a `castor train`, or all of its "
                "launcher.jsonl and agents/*/events.jsonl"
            )
        self.machines = whole(started, "machines")
        self.ranks = whole(started, "ranks")
        strategy, replicas = started.fields.get("placement"), whole(started, "replicas")
        self.replicas = place(str(strategy), self.machines, replicas).replicas

    @property
    def ranks_per_machine(self) -> int:
        return self.ranks // self.machines

    def of(self, kind: EventKind) -> list[Event]:
        return [event for event in self.events if event.kind == kind]

    def in_generations(self, kind: EventKind, generations: Sequence[int]) -> list[Event]:
        return [e for e in self.of(kind) if whole(e, "generation") in generations]

    def filled_by(self, start_ns: int, end_ns: int) -> dict[int, list[str]]:
        """Return the agents that fill each machine from `start_ns` to `end_ns`, in order.

        The log names an agent only where something happened to it; the others stay unnamed.
        """
        agents: dict[int, list[str]] = {machine: [] for machine in range(self.machines)}
        for event in self.events:
            machine, agent = whole(event, "machine"), event.fields.get("agent")
            if event.time_ns > end_ns or machine not in agents or not agent:
                continue
            if event.time_ns < start_ns:
                agents[machine].clear()
            if agents[machine][-1:] != [agent]:
                agents[machine].append(str(agent))
        return agents


def _timeline(log: _Log, recovery: Recovery) -> RecoveryTimeline:
    start_ns = outage_start_ns(log.events, recovery)
    parts = _parts(recovery, start_ns)
    total = recovery.seconds["total"]
    last_ns = log.events[-1].time_ns
    end_ns = last_ns if total is None else parts[-1].end_ns if parts else start_ns
    retrievals = _retrievals(log, recovery)
    agents = log.filled_by(start_ns, end_ns)
    per_machine = log.ranks_per_machine
    machines = tuple(
        Machine(
            machine,
            tuple(agents[machine]),
            machine in recovery.machines,
            tuple(
                _trainer(log, recovery, rank, start_ns)
                for rank in range(machine * per_machine, (machine + 1) * per_machine)
            ),
        )
        for machine in range(log.machines)
    )
    quiet = (EventKind.ITERATION_ENDED, EventKind.CHECKPOINT_COMPLETED)
    return RecoveryTimeline(
        recovery,
        start_ns,
        end_ns,
        parts,
        machines,
        retrievals,
        _redundant_ns(log, recovery),
        tuple(e for e in log.events if start_ns <= e.time_ns <= end_ns and e.kind not in quiet),
    )


def _parts(recovery: Recovery, start_ns: int) -> tuple[Span, ...]:
    parts, now_ns = [], start_ns
    for part in PARTS:
        seconds = recovery.seconds[part]
        if seconds:
            end_ns = now_ns + round(seconds * _NS_PER_S)
            parts.append(Span(part, now_ns, end_ns))
            now_ns = end_ns
    return tuple(parts)


def _retrievals(log: _Log, recovery: Recovery) -> tuple[Retrieval, ...]:
    found = log.in_generations(EventKind.RETRIEVED, recovery.generations[-1:])
    until_ns = found[-1].time_ns if found else 0
    agents = log.filled_by(until_ns, until_ns)
    return tuple(_retrieval(log, event, agents) for event in found)


def _retrieval(log: _Log, event: Event, agents: dict[int, list[str]]) -> Retrieval:
    rank, machine = whole(event, "rank"), whole(event, "machine")
    source = str(event.fields.get("source", ""))
    seconds = event.fields.get("seconds")
    took_ns = round(seconds * _NS_PER_S) if isinstance(seconds, int | float) else 0
    return Retrieval(
        rank,
        machine,
        event.fields.get("own") is True,
        source,
        _holder(log, rank, machine, source, agents),
        event.time_ns - took_ns,
        event.time_ns,
        max(0, whole(event, "bytes")),
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
    last = recovery.generations[-1]
    from_memory = {source.partition(":")[0] for source in recovery.sources.values()} <= {
        "own_memory",
        "peer",
    }
    kind, name, wanted = EventKind.CHECKPOINT_COMPLETED, "rank", log.ranks
    if from_memory:
        kind, name, wanted = EventKind.REDUNDANT, "machine", log.machines
    first: dict[int, int] = {}
    for event in log.in_generations(kind, (last,)):
        first.setdefault(whole(event, name), event.time_ns)
    return max(first.values()) if len(first) == wanted else None


def _trainer(log: _Log, recovery: Recovery, rank: int, start_ns: int) -> Trainer:
    """Follow one rank from the training that the failure ended to the one that followed."""
    first, last = recovery.generations[0], recovery.generations[-1]
    own = [event for event in log.events if whole(event, "rank") == rank]
    ended = [e for e in own if e.kind == EventKind.ITERATION_ENDED]
    before = [e for e in ended if whole(e, "generation") < first]
    newest = max((whole(e, "generation") for e in before), default=-1)
    stretches = []
    for event in before:
        if whole(event, "generation") == newest:
            kept = recovery.iteration is None or whole(event, "iteration") <= recovery.iteration
            stretches.append(_iteration(event, Doing.ITERATION if kept else Doing.REDONE))
    if stretches:
        stop_ns = _stopped_ns(log, own, first, start_ns)
        since_ns = stretches[-1].end_ns
        if stop_ns > since_ns:
            stretches.append(Stretch(Doing.CUT_OFF, since_ns, stop_ns))
    for generation in recovery.generations:
        stretches += _start_up(log, own, generation)
    stretches += [_iteration(e, Doing.ITERATION) for e in ended if whole(e, "generation") == last]
    return Trainer(rank, tuple(stretches))


def _iteration(event: Event, doing: Doing) -> Stretch:
    seconds = event.fields.get("seconds")
    took_ns = round(seconds * _NS_PER_S) if isinstance(seconds, int | float) else 0
    return Stretch(doing, event.time_ns - took_ns, event.time_ns, whole(event, "iteration"))


def _stopped_ns(log: _Log, own: Sequence[Event], generation: int, start_ns: int) -> int:
    """Return when a rank's training stopped: by its own failure, else once one was detected."""
    struck = [e.time_ns for e in own if e.kind == EventKind.FAILURE and e.time_ns >= start_ns]
    rank = whole(own[0], "rank")
    struck += [
        event.time_ns
        for event in log.of(EventKind.FAILURE)
        if event.time_ns >= start_ns
        and whole(event, "machine") == rank // log.ranks_per_machine
        and event.fields.get("failure") == "hardware"
    ]
    seen = log.in_generations(EventKind.DETECTED, (generation,))
    return min([*struck, seen[0].time_ns])


def _start_up(log: _Log, own: Sequence[Event], generation: int) -> list[Stretch]:
    """Return what a trainer of `generation` did up to its first iteration, or to its end."""
    mine = [event for event in own if whole(event, "generation") == generation]
    begun = next((e.time_ns for e in mine if e.kind == EventKind.TRAINER_STARTED), None)
    if begun is None:
        return []
    resumed = next((event for event in mine if event.kind == EventKind.RESUMED), None)
    if resumed is None:
        following = log.in_generations(EventKind.DETECTED, (generation + 1,))
        end_ns = following[0].time_ns if following else log.events[-1].time_ns
        return [Stretch(Doing.STARTING, begun, max(begun, end_ns))]
    # What it says of itself was measured up to the moment at which it said so.
    loading_ns = _part_ns(resumed, ("verify", "restore", "storage"))
    waiting_ns = _part_ns(resumed, ("wait",))
    loading = max(begun, resumed.time_ns - loading_ns)
    waiting = max(begun, loading - waiting_ns)
    edges = [begun, waiting, loading, resumed.time_ns]
    doings = (Doing.STARTING, Doing.WAITING, Doing.LOADING)
    return [
        Stretch(doing, since_ns, until_ns)
        for doing, (since_ns, until_ns) in zip(doings, pairwise(edges), strict=True)
        if until_ns > since_ns
    ]


def _part_ns(event: Event, names: Sequence[str]) -> int:
    values = [event.fields.get(name) for name in names]
    return sum(round(v * _NS_PER_S) for v in values if isinstance(v, int | float))


_HOW = re.compile(r"\s*\[/[^\]]*\]\s*")


def in_short(cause: str, length: int = 70) -> str:
    """Return why something failed in one short line: without source paths, and cut."""
    line = _HOW.sub(" ", cause.partition("\n")[0]).strip()
    return line if len(line) <= length else line[: length - 3].rstrip() + "..."
