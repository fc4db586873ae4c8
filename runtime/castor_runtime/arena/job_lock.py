"""Who lives: a lock file a job, and the removal of segments that nobody can need any more.

A segment outlives the agent that made it, which is its use, so it takes more than a dead agent to
remove it: all agents and launchers of its job on this machine have to be gone. Each holds a shared
`flock` on the job's lock file, which the kernel gives up for them however they die.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from castor_configs.errors import InputError
from castor_runtime.arena.control import read_control_job
from castor_runtime.arena.errors import ForeignCheckpointError
from castor_runtime.arena.layout import check_name
from castor_runtime.arena.replica import read_header
from castor_runtime.arena.segments import PREFIX, SHARED_MEMORY

_SUFFIX = ".lock"
_SEGMENT = re.compile(re.escape(PREFIX) + r"(.+)-(?:r\d+|control)")


class JobLock:
    """Held by every agent and launcher of a job while it lives; children forked from it share it.

    Args:
        job: name of the job.
        folder: where the machine's shared memory is.

    Raises:
        InputError: another user runs a job of that name here.
        ValueError: the name cannot be one.
    """

    def __init__(self, job: str, *, folder: Path = SHARED_MEMORY) -> None:
        check_name("job", job)
        self.job = job
        self._folder = folder
        self._descriptor: int | None = _lock(_lock_path(folder, job), fcntl.LOCK_SH)

    def close(self) -> None:
        """Give the lock up; the last of the job's holders removes its file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            with _exclusive(self._folder, self.job):
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def remove_dead(folder: Path = SHARED_MEMORY, *, job: str | None = None) -> list[str]:
    """Remove the segments of jobs of this user none of whose agents and launchers lives.

    Args:
        folder: where the machine's shared memory is.
        job: only this job's; None: every job's.

    Returns:
        The names of what was removed, lock files not counted, sorted.
    """
    # Listed before any lock is asked for: who makes a segment holds its lock by then.
    segments: dict[tuple[str, ...], list[str]] = {}
    for name in sorted(path.name for path in folder.iterdir()):
        if _is_ours(folder / name):
            if name.startswith(PREFIX) and name.endswith(_SUFFIX):
                segments.setdefault((name[len(PREFIX) : -len(_SUFFIX)],), [])
            elif match := _SEGMENT.fullmatch(name):
                jobs = _possible_jobs(folder / name, match[1])
                segments.setdefault(jobs, []).append(name)
    removed: list[str] = []
    for jobs, names in sorted(segments.items()):
        if job is not None and job not in jobs:
            continue
        with ExitStack() as stack:
            if all(stack.enter_context(_exclusive(folder, owner)) for owner in jobs):
                for name in names:
                    (folder / name).unlink(missing_ok=True)
                removed += names
    return sorted(removed)


def _possible_jobs(path: Path, stem: str) -> tuple[str, ...]:
    """Return the job in the header, or, where that is unreadable, every job the name allows."""
    try:
        return (read_control_job(path) or read_header(path)[0].job,)
    except (ForeignCheckpointError, OSError):
        words = stem.split("-")
        return tuple("-".join(words[:count]) for count in range(1, len(words)))


def _is_ours(path: Path) -> bool:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()


@contextmanager
def _exclusive(folder: Path, job: str) -> Iterator[bool]:
    """Hold a dead job's lock, and remove its file at the end; yields False if the job lives."""
    path = _lock_path(folder, job)
    try:
        descriptor = _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, InputError):
        yield False
        return
    try:
        yield True
        # Under the lock: a newcomer that waits for it sees that its file is gone, and makes anew.
        path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _lock(path: Path, operation: int) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except PermissionError as error:
            raise InputError(
                "another user runs a job of this name on this machine; name the job otherwise",
                file=path,
            ) from error
        try:
            fcntl.flock(descriptor, operation)
            if _still_there(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _still_there(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _lock_path(folder: Path, job: str) -> Path:
    return folder / f"{PREFIX}{job}{_SUFFIX}"
