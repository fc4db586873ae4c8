"""What an agent and its trainers tell each other without a word: counters in shared memory.

A page, then 128 bytes a local rank, one u64 a field. Each field has one writer, and an aligned
store of 8 bytes is never seen half, so no lock is needed and a stopped trainer holds nobody up.

    0   magic "CASTORCB"   8  layout version u32   12  local ranks u32
    16  job, 64 bytes, zero-padded                 80  agent, 64 bytes
    144 run, 8 bytes
"""

from __future__ import annotations

import mmap
import struct
from array import array
from enum import IntEnum
from pathlib import Path
from typing import Self

from castor_policy.agents.job_spec import check_run
from castor_runtime.arena.errors import ForeignCheckpointError
from castor_runtime.arena.layout import LAYOUT_VERSION, PAGE_BYTES, check_name
from castor_runtime.arena.segments import (
    SHARED_MEMORY,
    control_name,
    create_file,
    open_file,
    read_start,
)

_MAGIC = b"CASTORCB"
_HEADER = struct.Struct("<8sII64s64s8s")
_SLOTS = 16


class TrainerPhase(IntEnum):
    """What a trainer is doing."""

    ABSENT = 0
    STARTING = 1
    LOADING = 2
    TRAINING = 3
    FINISHED = 4


class _Slot:
    """One u64 of a rank's counters."""

    def __init__(self, index: int, doc: str) -> None:
        self._index = index
        self.__doc__ = doc

    def __get__(self, counters: RankControl, kind: type[RankControl]) -> int:
        return int(counters.slots[self._index])

    def __set__(self, counters: RankControl, value: int) -> None:
        counters.slots[self._index] = value


class RankControl:
    """The counters of one local rank. The trainer writes them; the agent reads, and clears.

    But `hold` and `last_word` are the agent's to write.

    Raises:
        ValueError: a value set is outside 0..2^64-1.
    """

    def __init__(self, slots: memoryview) -> None:
        self.slots = slots

    @classmethod
    def unseen(cls) -> RankControl:
        """Return counters that nobody else sees: of a process that has no rank's place yet."""
        return cls(memoryview(array("Q", bytes(8 * _SLOTS))))

    heartbeat = _Slot(0, "Counts up in a thread of the trainer, whatever its main thread does.")
    iteration = _Slot(1, "Iterations that the trainer has ended, from the start of the job.")
    agreed = _Slot(2, "The newest iteration it knows to be complete on every rank.")
    _phase = _Slot(3, "See `phase`.")
    collectives = _Slot(4, "Collectives that it has begun in this generation, of all groups.")
    shared_collectives = _Slot(5, "Those of groups that every rank is in: all count the same.")
    busy_until_ns = _Slot(6, "CLOCK_MONOTONIC until which it may be silent: a busy section.")
    hold = _Slot(7, "1: the agent asks all ranks to hold once their next checkpoint is complete.")
    turned = _Slot(8, "The newest iteration that its only own buffer is, or is being, turned to.")
    last_word = _Slot(9, "Which turn may still be made before it is killed: see `arena.own_turn`.")

    @property
    def phase(self) -> TrainerPhase:
        """What the trainer is doing."""
        return TrainerPhase(self._phase)

    @phase.setter
    def phase(self, phase: TrainerPhase) -> None:
        self._phase = int(phase)

    def clear(self) -> None:
        """Set every field to 0, before a trainer starts."""
        for index in range(_SLOTS):
            self.slots[index] = 0


class ControlBlock:
    """The control segment of an agent. Make one by `create` or `open`.

    Attributes:
        name: of the segment.
        job: of the agent.
        run: which run of that job, 16 hex digits.
        agent: that owns it.
        ranks: the counters by local rank.
    """

    def __init__(self, path: Path, mapped: mmap.mmap) -> None:
        _, _, local_ranks, job, agent, run = _HEADER.unpack_from(mapped)
        self.name = path.name
        self.job = job.rstrip(b"\0").decode()
        self.run = run.hex()
        self.agent = agent.rstrip(b"\0").decode()
        self._path = path
        self._map = mapped
        self._words = memoryview(mapped).cast("Q")
        first = PAGE_BYTES // 8
        self.ranks = tuple(
            RankControl(self._words[first + _SLOTS * local : first + _SLOTS * (local + 1)])
            for local in range(local_ranks)
        )

    @classmethod
    def create(
        cls, job: str, run: str, agent: str, local_ranks: int, *, folder: Path = SHARED_MEMORY
    ) -> ControlBlock:
        """Make the control segment of `agent`, all counters 0, in place of an older one.

        Raises:
            OSError: it cannot be made.
            ValueError: a name cannot be one, the run is none, or there is no rank.
        """
        check_name("job", job)
        check_run(run)
        check_name("agent", agent)
        if local_ranks < 1:
            raise ValueError(f"local_ranks must be 1 or more, not {local_ranks}")
        path = folder / control_name(job, run, agent)
        mapped = create_file(path, PAGE_BYTES + 8 * _SLOTS * local_ranks)
        header = _HEADER.pack(
            _MAGIC,
            LAYOUT_VERSION,
            local_ranks,
            job.encode(),
            agent.encode(),
            bytes.fromhex(run),
        )
        mapped[: len(header)] = header
        return cls(path, mapped)

    @classmethod
    def open(cls, name: str, *, folder: Path = SHARED_MEMORY) -> ControlBlock:
        """Map the control segment `name`.

        Raises:
            ForeignCheckpointError: it is none of this layout version.
            OSError: it is not there.
        """
        path = folder / name
        found = _read_header(path)
        if found is None:
            raise ForeignCheckpointError(
                f"{name} is no control segment of layout version {LAYOUT_VERSION}; remove it"
            )
        mapped = open_file(path)
        if len(mapped) < PAGE_BYTES + 8 * _SLOTS * found[0]:
            mapped.close()
            raise ForeignCheckpointError(f"{name} is cut short; remove it")
        return cls(path, mapped)

    def rank(self, local_rank: int) -> RankControl:
        """Return the counters of a local rank.

        Raises:
            ValueError: there is no such rank.
        """
        if not 0 <= local_rank < len(self.ranks):
            raise ValueError(f"there is no local rank {local_rank}; use 0..{len(self.ranks) - 1}")
        return self.ranks[local_rank]

    def close(self, *, unlink: bool = False) -> None:
        """Give up the mapping, and the segment too with `unlink`."""
        if unlink:
            self._path.unlink(missing_ok=True)
        for counters in self.ranks:
            counters.slots.release()
        self._words.release()
        self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_control_owner(path: Path) -> tuple[str, str, str] | None:
    """Return job, run and agent of a control segment; None where it is none.

    Raises:
        OSError: it cannot be read.
    """
    found = _read_header(path)
    return None if found is None else found[1:]


def _read_header(path: Path) -> tuple[int, str, str, str] | None:
    header = read_start(path, _HEADER.size)
    if len(header) < _HEADER.size:
        return None
    magic, version, local_ranks, job, agent, run = _HEADER.unpack(header)
    if magic != _MAGIC or version != LAYOUT_VERSION:
        return None
    return local_ranks, job.rstrip(b"\0").decode(), run.hex(), agent.rstrip(b"\0").decode()
