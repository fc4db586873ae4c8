"""What a checkpoint of every iteration costs while nothing fails: iteration time and memory."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from statistics import mean

import psutil
from rank_log import Record, of_kind
from samples import Spread
from scale import BYTES_PER_PARAMETER, LAYERS, hidden_for, parameters
from systems import START_LIMIT_S, CastorRun, SystemRun, castor, warm_start

from castor_runtime.processes import memory_fields

_ITERATION_LIMIT_S = 30.0
_SAMPLE_S = 0.05


# ---- iteration time ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Throughput:
    """Blocks of iterations with and without checkpoints, in turns, in one run.

    Attributes:
        name: of the case.
        ranks: one a machine.
        replicas: copies of each part, its own included.
        state_bytes: of a rank.
        pace_s: sleep in each forward.
        with_s: mean iteration of each block with.
        without_s: of the block before it.
        overhead: (with - without) / without of each pair.
    """

    name: str
    ranks: int
    replicas: int
    state_bytes: float
    pace_s: float
    with_s: Spread
    without_s: Spread
    overhead: Spread

    def to_json(self) -> dict[str, object]:
        """Return all of it."""
        return {
            "name": self.name,
            "ranks": self.ranks,
            "replicas": self.replicas,
            "state_bytes": self.state_bytes,
            "pace_s": self.pace_s,
            "with_s": self.with_s.to_json(),
            "without_s": self.without_s.to_json(),
            "overhead": self.overhead.to_json(),
        }


def throughput(
    out: Path,
    name: str,
    *,
    ranks: int,
    state_bytes: float,
    pace_s: float,
    batch: int,
    block: int,
    pairs: int,
    replicas: int = 2,
) -> Throughput:
    """Train `pairs` pairs of blocks, without and with, after one pair to warm up.

    Without means that `Checkpointer.step` is not called; all else is the same. The first iteration
    of a block is left out: the last checkpoint of the block before may still be under way in it.
    """
    hidden = hidden_for(state_bytes, ranks)
    job = ["--hidden", str(hidden), "--pace-s", str(pace_s), "--batch", str(batch)]
    job += ["--block", str(block)]
    iterations = 2 * block * (pairs + 1)
    limit_s = START_LIMIT_S + _ITERATION_LIMIT_S * iterations
    with castor(out, ranks, job, replicas=replicas) as run:
        # To look is to read all logs: twenty times a second it would take its part of the cores.
        run.wait(lambda: run.ended(iterations), f"iteration {iterations}", limit_s, poll_s=2.0)
        ended = of_kind(run.logs()[0], "iteration_ended")[2 * block : iterations]
    blocks = [_block_s(ended[i : i + block]) for i in range(0, len(ended), block)]
    without, checkpointed = blocks[0::2], blocks[1::2]
    return Throughput(
        name,
        ranks,
        replicas,
        parameters(hidden) * BYTES_PER_PARAMETER / ranks,
        pace_s,
        Spread.of(checkpointed),
        Spread.of(without),
        Spread.of([b / a - 1.0 for a, b in zip(without, checkpointed, strict=True)]),
    )


def _block_s(ended: list[Record]) -> float:
    assert len(list(groupby(ended, key=lambda r: r["checkpointed"]))) == 1, "one kind in a block"
    return mean(record["seconds"] for record in ended[1:])


# ---- memory ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Memory:
    """A process at its peak, in bytes.

    Attributes:
        private: peak of RssAnon + RssFile: all but shared memory.
        shared: RssShmem then: checkpoint memory that is mapped, which the agent owns.
        peak: VmHWM, both together.
        proportional: Pss without shared memory; pages that forked siblings share count in parts.
        unique: pages that no other process has (Private_Clean + Private_Dirty).
    """

    private: int
    shared: int
    peak: int
    proportional: int
    unique: int


@dataclass(frozen=True, slots=True)
class MemoryResult:
    """Memory with and without Castor, of ranks of the same state.

    Attributes:
        state_bytes: of a rank.
        without: the largest rank's, forked from the same host, without a checkpointer.
        checkpointed: the largest rank's with it.
        agent: of the agent's process.
        host: of the process that trainers are forked from.
        segments_bytes: shared memory of one agent.
        replicas: m.
    """

    state_bytes: float
    without: Memory
    checkpointed: Memory
    agent: Memory
    host: Memory
    segments_bytes: int
    replicas: int

    @property
    def growth(self) -> float:
        """A trainer's peak of its own memory, relative."""
        return self.checkpointed.private / self.without.private - 1.0

    @property
    def segments_over_bytes(self) -> float:
        """What the segments take beyond two buffers of m parts."""
        return self.segments_bytes - 2 * self.replicas * self.state_bytes

    def to_json(self) -> dict[str, object]:
        """Return all of it."""
        return {
            "state_bytes": self.state_bytes,
            "replicas": self.replicas,
            "trainer_without": asdict(self.without),
            "trainer_with": asdict(self.checkpointed),
            "trainer_growth": self.growth,
            "agent": asdict(self.agent),
            "host": asdict(self.host),
            "segments_bytes": self.segments_bytes,
            "segments_over_2_m_parts_bytes": self.segments_over_bytes,
        }


def memory(out: Path, state_bytes: float, iterations: int) -> MemoryResult:
    """Train 2 ranks without and with Castor and sample them, twenty times a second."""
    ranks = 2
    hidden = hidden_for(state_bytes, ranks)
    job = ["--hidden", str(hidden), "--pace-s", "0.3"]
    with warm_start(out / "without", ranks, "none", job) as run:
        without = _largest(_watch(run, _rank_pids(run), iterations))
    with castor(out / "with", ranks, job) as run:
        records = run.folder.records
        checkpointed = _largest(_watch(run, _rank_pids(run), iterations))
        agents = _watch(run, lambda: [record.pid for record in records()], iterations + 1)
        forks = _watch(
            run, lambda: [record.fork_server_pid for record in records()], iterations + 2
        )
        segments_bytes = max(_agent_bytes(run))
    return MemoryResult(
        parameters(hidden, LAYERS) * BYTES_PER_PARAMETER / ranks,
        without,
        checkpointed,
        _largest(agents),
        _largest(forks),
        segments_bytes,
        replicas=2,
    )


def _agent_bytes(run: CastorRun) -> list[int]:
    return [record.memory_bytes() for record in run.folder.records()]


def _rank_pids(run: SystemRun) -> Callable[[], list[int]]:
    return lambda: [records[-1]["pid"] for records in run.logs() if records]


def _largest(memories: list[Memory]) -> Memory:
    return max(memories, key=lambda found: found.private)


def _watch(run: SystemRun, pids: Callable[[], list[int]], iterations: int) -> list[Memory]:
    """Sample until that iteration has ended on all ranks; return each process's peak."""
    peaks: dict[int, Memory] = {}
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(_SAMPLE_S):
            for pid in pids():
                with contextlib.suppress(OSError, psutil.Error):
                    _raise_peak(peaks, pid)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        limit_s = START_LIMIT_S + _ITERATION_LIMIT_S * iterations
        run.wait(lambda: run.ended(iterations), f"iteration {iterations}", limit_s)
    finally:
        stop.set()
        thread.join()
    return [
        Memory(peak.private, peak.shared, peak.peak, *_shares(pid)) for pid, peak in peaks.items()
    ]


def _raise_peak(peaks: dict[int, Memory], pid: int) -> None:
    status = memory_fields(Path(f"/proc/{pid}/status"))
    private = status["RssAnon"] + status["RssFile"]
    before = peaks.get(pid)
    if before is None or private > before.private:
        peaks[pid] = Memory(private, status["RssShmem"], status["VmHWM"], 0, 0)
    else:
        shared = max(before.shared, status["RssShmem"])
        peaks[pid] = Memory(before.private, shared, status["VmHWM"], 0, 0)


def _shares(pid: int) -> tuple[int, int]:
    rollup = memory_fields(Path(f"/proc/{pid}/smaps_rollup"))
    return rollup["Pss"] - rollup["Pss_Shmem"], rollup["Private_Clean"] + rollup["Private_Dirty"]
