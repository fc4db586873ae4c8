"""What of Castor's lies in a machine's shared memory: segments by run, and what is kept on purpose.

A job that gives up keeps its checkpoint memory for `castor resume`. A mark beside it says so, and
says to whoever looks for garbage that this is none.
"""

from __future__ import annotations

import json
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from os import geteuid
from pathlib import Path
from typing import Any

from castor_configs.atomic import write_text
from castor_runtime.arena.control import read_control_owner
from castor_runtime.arena.errors import ArenaError, ForeignCheckpointError
from castor_runtime.arena.replica import Replica
from castor_runtime.arena.segment_header import read_header
from castor_runtime.arena.segments import PREFIX, SHARED_MEMORY

NEXT_STEPS = "`castor resume` goes on from it, `castor clean` frees it"
"""What can be done about memory that is kept."""

_MARK = ".kept"
_SEGMENT = re.compile(re.escape(PREFIX) + r"(.+)-(?:r\d+|control)")
_MARK_NAME = re.compile(re.escape(PREFIX) + r"(.+)-([0-9a-f]{16})" + re.escape(_MARK))


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment that lies there.

    Attributes:
        name: of its file.
        jobs: whose it is; where its header cannot be read, every job that its name allows.
        run: which run's; "" where its header cannot be read.
        agent: which agent's; "" likewise.
        bytes: memory that it has taken.
        is_control: it holds counters, no checkpoint.
    """

    name: str
    jobs: tuple[str, ...]
    run: str
    agent: str
    bytes: int
    is_control: bool


@dataclass(frozen=True, slots=True)
class Kept:
    """Why a run's memory is kept.

    Attributes:
        job: its name.
        run: which run of that name.
        home: the folder with which to go on: `castor resume HOME`.
        reason: why the job gave up.
        since_ns: CLOCK_REALTIME.
    """

    job: str
    run: str
    home: str
    reason: str
    since_ns: int


def segments(folder: Path = SHARED_MEMORY) -> list[Segment]:
    """Return this user's segments in `folder`, by name."""
    found = []
    for path in _ours(folder):
        if match := _SEGMENT.fullmatch(path.name):
            try:
                found.append(_segment(path, match[1]))
            except FileNotFoundError:
                continue  # its owner has just removed it
    return found


def agents_with_checkpoints(
    job: str, run: str, folder: Path = SHARED_MEMORY
) -> dict[str, dict[int, tuple[int, ...]]]:
    """Return, for each agent of a run, the complete iterations of each rank that lie here.

    Agents without any are left out.
    """
    found: dict[str, dict[int, tuple[int, ...]]] = {}
    for one in segments(folder):
        if one.jobs == (job,) and one.run == run and not one.is_control:
            try:
                with Replica.open(one.name, run=run, folder=folder) as replica:
                    rank, iterations = replica.rank, tuple(sorted(replica.offered()))
            except (ArenaError, OSError):
                continue
            if iterations:
                found.setdefault(one.agent, {})[rank] = iterations
    return found


def newest_whole(held: dict[str, dict[int, tuple[int, ...]]], ranks: int) -> int:
    """Return the newest iteration that all `ranks` have among `held`; 0 if there is none."""
    of_rank: dict[int, set[int]] = {}
    for parts in held.values():
        for rank, iterations in parts.items():
            of_rank.setdefault(rank, set()).update(iterations)
    if len(of_rank) < ranks:
        return 0
    return max(set.intersection(*of_rank.values()), default=0)


def mark_kept(job: str, run: str, home: str, reason: str, folder: Path = SHARED_MEMORY) -> None:
    """Say that the memory of a run that has ended is none that is forgotten."""
    kept = Kept(job, run, home, reason, time.time_ns())
    path = _mark_path(folder, job, run)
    write_text(path, json.dumps(asdict(kept)) + "\n")
    path.chmod(0o600)


def unmark_kept(job: str, run: str, folder: Path = SHARED_MEMORY) -> None:
    """Take the mark away; nothing if there is none."""
    _mark_path(folder, job, run).unlink(missing_ok=True)


def kept_runs(folder: Path = SHARED_MEMORY) -> list[Kept]:
    """Return the runs of this user whose memory is kept here, by name."""
    return [
        _read_mark(path, match[1], match[2])
        for path in _ours(folder)
        if (match := _MARK_NAME.fullmatch(path.name))
    ]


def describe_kept(kept: Kept) -> str:
    """Return what to tell who comes for the same job."""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(kept.since_ns / 1e9))
    return (
        f"this machine keeps checkpoint memory of run {kept.run} of job {kept.job}, which gave up "
        f"at {since}; it is not touched: `castor resume {kept.home}` goes on with that run, "
        f"`castor clean --job {kept.job}` frees it"
    )


def _read_mark(path: Path, job: str, run: str) -> Kept:
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Kept(
            job, run, str(document["home"]), str(document["reason"]), int(document["since_ns"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return Kept(job, run, "", "", 0)  # its being there says enough


def _segment(path: Path, stem: str) -> Segment:
    size = path.stat().st_blocks * 512
    control = read_control_owner(path)
    if control is not None:
        job, run, agent = control
        return Segment(path.name, (job,), run, agent, size, is_control=True)
    try:
        owner, _ = read_header(path)
    except (ForeignCheckpointError, OSError):
        words = stem.split("-")
        jobs = tuple("-".join(words[:count]) for count in range(1, len(words)))
        return Segment(path.name, jobs, "", "", size, path.name.endswith("-control"))
    return Segment(path.name, (owner.job,), owner.run, owner.agent, size, is_control=False)


def _ours(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.glob(f"{PREFIX}*")):
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        if stat.S_ISREG(status.st_mode) and status.st_uid == geteuid():
            yield path


def _mark_path(folder: Path, job: str, run: str) -> Path:
    return folder / f"{PREFIX}{job}-{run}{_MARK}"
