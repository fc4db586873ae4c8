"""Carrying a fault out on the processes and the memory of one run on this machine.

Who fills which machine is read from agents/NAME/agent.json, at the moment of the fault.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from castor_lab.emulated_cluster.network import Network
from castor_lab.faults.fault import Fault, FaultKind
from castor_runtime.arena.replica import Replica
from castor_runtime.launcher.run_folder import AgentRecord, RunFolder, trainer_of
from castor_runtime.processes import descendants, is_alive, is_stopped, kill_tree, send

_SHM = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lies, not a temporary file
SIGNALS = {"KILL": signal.SIGKILL, "STOP": signal.SIGSTOP, "TERM": signal.SIGTERM}
_DEATH_S = 5.0
_STOP_S = 30.0


def suspend(pid: int) -> None:
    """Stop a process, and return when the kernel has stopped each of its threads.

    SIGSTOP alone returns before it acts: a thread on another core goes on for a while.

    Raises:
        ProcessLookupError: it is gone.
        TimeoutError: a thread of it did not stop.
    """
    os.kill(pid, signal.SIGSTOP)
    give_up_s = time.monotonic() + _STOP_S
    while not all(map(is_stopped, (int(one.name) for one in Path(f"/proc/{pid}/task").iterdir()))):
        if not is_alive(pid):
            raise ProcessLookupError(f"process {pid} is dead")
        if time.monotonic() > give_up_s:
            raise TimeoutError(f"process {pid} did not stop within {_STOP_S:g} s")
        time.sleep(0.001)


class TargetMissingError(Exception):
    """Who is to fail is not there at the moment: dead, or not started yet."""


@dataclass(frozen=True, slots=True)
class Struck:
    """What one fault did to one target.

    Attributes:
        target: as in the fault: "machine:2".
        kind: "hardware" if the memory is gone too, else "software".
        agent: whose processes were struck; "" for the store.
        machine: which it filled; None for a standby and the store.
        rank: the trainer that was struck, None if it was not one alone.
        time_ns: CLOCK_REALTIME of the blow.
    """

    target: str
    kind: str
    agent: str
    machine: int | None
    rank: int | None = None
    time_ns: int = 0


def strike(
    folder: RunFolder,
    fault: Fault,
    *,
    ranks_per_machine: int,
    root: str,
    doomed: Callable[[str], None],
    network: Network | None = None,
) -> list[Struck]:
    """Carry `fault` out, on all its targets or, where one is missing, on none.

    Args:
        folder: of the run.
        fault: one of a machine; what is around them is `surroundings`'.
        ranks_per_machine: trainers on each machine.
        root: name of the agent that is root.
        doomed: called with each agent that dies with its machine, before it is killed: it must
            not be restarted.
        network: the emulated cluster that the run is on, if it is on one.

    Raises:
        TargetMissingError: a target is not there now; nothing was done.
        ValueError: a fault of no machine, or one of a link without an emulated cluster.
    """
    if fault.is_around:
        raise ValueError(f"{fault.kind} happens to no machine")
    records = [record for record in folder.records() if record.lives]
    if fault.kind in (FaultKind.RANK, FaultKind.STOP):
        return _strike_trainers(fault, records, ranks_per_machine)
    targets: tuple[int | str, ...] = fault.targets
    if fault.kind == FaultKind.ROOT:
        if not root:
            raise TargetMissingError("there is no root at the moment")
        targets = (root,)
    chosen = [_agent(records, target) for target in targets]
    if fault.of_link:
        return _strike_links(fault, chosen, network)
    if fault.kind == FaultKind.FLIP:
        return [_flip(fault, record, ranks_per_machine) for record in chosen]
    if fault.kind in (FaultKind.AGENT, FaultKind.AGENTSTOP, FaultKind.FORKSTOP):
        return _strike_agents(fault, chosen)
    run = folder.run()
    named = f"{run.job}-{run.run}"
    struck = _strike_machines(fault, chosen, named, doomed)
    if network is not None and fault.takes_machine:
        for record in chosen:
            network.clear(record.name)
    return struck


def _strike_links(fault: Fault, chosen: list[AgentRecord], network: Network | None) -> list[Struck]:
    if network is None:
        raise ValueError("only a run on an emulated cluster has links: castor train --cluster")
    now_ns = time.time_ns()
    for record in chosen:
        if fault.kind == FaultKind.LINK:
            network.cut(record.name)
        else:
            network.slow(record.name, fault.bandwidth_bps)
    # Nothing in memory is lost by it; whether the machine is replaced is for the root to decide.
    return [_struck(fault, record, "software", now_ns) for record in chosen]


def _strike_agents(fault: Fault, chosen: list[AgentRecord]) -> list[Struck]:
    now_ns = time.time_ns()
    number = _signal(fault, stop=fault.kind != FaultKind.AGENT)
    of_forks = fault.kind == FaultKind.FORKSTOP
    send([record.fork_server_pid if of_forks else record.pid for record in chosen], number)
    return [_struck(fault, record, "software", now_ns) for record in chosen]


def _strike_machines(
    fault: Fault, chosen: list[AgentRecord], named: str, doomed: Callable[[str], None]
) -> list[Struck]:
    now_ns = time.time_ns()
    if not fault.takes_machine:
        trees = [pid for r in chosen for pid in (r.pid, *descendants(r.pid))]
        send(trees, SIGNALS[fault.signal])
        return [_struck(fault, record, "software", now_ns) for record in chosen]
    for record in chosen:
        doomed(record.name)
    for record in chosen:
        kill_tree(record.pid)
    for record in chosen:
        forget_memory(named, record)
    return [_struck(fault, record, "hardware", now_ns) for record in chosen]


def _strike_trainers(
    fault: Fault, records: list[AgentRecord], ranks_per_machine: int
) -> list[Struck]:
    found = [_trainer(records, int(rank), ranks_per_machine) for rank in fault.targets]
    now_ns = time.time_ns()
    send([pid for _, pid in found], _signal(fault, stop=fault.kind == FaultKind.STOP))
    return [
        _struck(fault, record, "software", now_ns, rank=int(rank))
        for (record, _), rank in zip(found, fault.targets, strict=True)
    ]


def forget_memory(named: str, record: AgentRecord) -> None:
    """Wait until an agent is dead, then remove the shared memory that it held: it died with it.

    `named` are job and run, as its segments' names have them.
    """
    deadline_s = time.monotonic() + _DEATH_S
    pids = (record.pid, record.fork_server_pid, *record.trainers.values())
    while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline_s:
        time.sleep(0.001)
    # Also what the agent made after it last wrote of itself.
    names = {path.name for path in _SHM.glob(f"castor-{named}-{record.name}-*")}
    names |= {name.lstrip("/") for name in (*record.segments.values(), record.control) if name}
    for name in sorted(names):
        with contextlib.suppress(FileNotFoundError):
            (_SHM / name).unlink()


def _struck(
    fault: Fault, record: AgentRecord, kind: str, time_ns: int, rank: int | None = None
) -> Struck:
    of_rank = fault.kind in (FaultKind.RANK, FaultKind.STOP)
    target = rank if of_rank else record.machine
    shown = f"{fault.kind}:{record.name if target is None else target}"
    return Struck(shown, kind, record.name, record.machine, rank, time_ns)


def _signal(fault: Fault, *, stop: bool) -> signal.Signals:
    return SIGNALS[fault.signal or ("STOP" if stop else "KILL")]


def _agent(records: list[AgentRecord], target: int | str) -> AgentRecord:
    if isinstance(target, str):
        found = [record for record in records if record.name == target]
    else:
        # An agent that was stopped still says that it fills a machine given away since.
        found = [record for record in records if record.machine == target]
        found.sort(key=lambda record: record.generation)
    if not found:
        what = f"agent {target}" if isinstance(target, str) else f"machine {target}"
        raise TargetMissingError(f"no live process for {what}")
    return found[-1]


def _trainer(
    records: list[AgentRecord], rank: int, ranks_per_machine: int
) -> tuple[AgentRecord, int]:
    record = _agent(records, rank // ranks_per_machine)
    pid = trainer_of(record, rank)
    if pid is None:
        raise TargetMissingError(f"no live process for rank {rank}")
    return record, pid


def _flip(fault: Fault, record: AgentRecord, ranks_per_machine: int) -> Struck:
    """Flip a bit in the machine's own part, so that it is this part that recovery would load.

    The trainer is stopped first: a running one would complete the next iteration meanwhile. Which
    of two complete iterations all ranks share is not to be seen from here, so both are damaged.
    """
    rank = (record.machine or 0) * ranks_per_machine
    pid = trainer_of(record, rank)
    if pid is None or rank not in record.segments:
        raise TargetMissingError(f"no live process or no memory for rank {rank}")
    damaged, now_ns = False, time.time_ns()
    suspend(pid)
    try:
        with Replica.open(record.segments[rank]) as replica:
            for iteration in sorted(replica.offered()):
                with replica.snapshot(iteration).data as data:
                    data[len(data) // 2] ^= 1
                damaged = True
    finally:
        os.kill(pid, signal.SIGKILL if damaged else signal.SIGCONT)
    if not damaged:
        raise TargetMissingError(f"rank {rank} holds no complete checkpoint yet")
    return _struck(fault, record, "software", now_ns, rank=rank)
