"""Who lives: a lock file a job, which says which run of that name holds it.

A segment outlives the agent that made it, which is its use, so it takes more than a dead agent to
remove it: all agents and launchers of its run on this machine have to be gone. Each holds a shared
`flock` on the job's lock file, which the kernel gives up for them however they die. The file's
lines say who they are, the first of them for which run. Who comes for another run while one of them
lives is refused; who comes when all are dead takes the file over, and removes what they left.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from castor_configs.errors import InputError
from castor_policy.agents.job_spec import check_run
from castor_runtime.arena import leftovers
from castor_runtime.arena.layout import check_name
from castor_runtime.arena.segments import PREFIX, SHARED_MEMORY
from castor_runtime.processes import started_before

SUFFIX = ".lock"

_UNSURE_S = 2.0
"""How long a lock may be held by nobody who has said who it is."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A line of a lock file: a process that holds the lock, or has held it.

    Attributes:
        run: which run of the job it belongs to.
        pid: its number.
        home: its folder: a launcher's run folder, or an agent's.
        since_s: CLOCK_REALTIME when it took the lock.
        comes_again: somebody may start it again on this machine: what it leaves is not dead before
            another run takes the job's name. An agent on its own is; one under a launcher is not.
    """

    run: str
    pid: int
    home: str
    since_s: float
    comes_again: bool

    @property
    def lives(self) -> bool:
        """Its process is there, and is the one that wrote the line."""
        return started_before(self.pid, self.since_s)


class JobLock:
    """Held by every agent and launcher of a run while it lives; children forked from it share it.

    Args:
        job: name of the job.
        run: which run of that name.
        home: folder of the process that takes it, for whoever is refused.
        comes_again: see `Holder`.
        folder: where the machine's shared memory is.

    Attributes:
        removed: names of segments of other, dead runs of the job that were removed.

    Raises:
        InputError: another run of that name lives on this machine, or another user's does.
        ValueError: the name or the run cannot be one.
    """

    def __init__(
        self,
        job: str,
        run: str,
        *,
        home: Path | str = "",
        comes_again: bool = False,
        folder: Path = SHARED_MEMORY,
    ) -> None:
        check_name("job", job)
        check_run(run)
        self.job = job
        self.run = run
        self.home = str(home)
        self.removed: list[str] = []
        self._folder = folder
        own = Holder(run, os.getpid(), str(home), time.time(), comes_again)
        self._descriptor: int | None = self._take(own)

    def close(self) -> None:
        """Give the lock up; the last of the run's holders removes its file, if nothing is left."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            with exclusive(self._folder, self.job):
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, own: Holder) -> int:
        path = lock_path(self._folder, self.job)
        give_up_s = time.monotonic() + _UNSURE_S
        while True:
            # Waits for nobody but one who looks, for a moment, for what is dead.
            descriptor = _lock(path, fcntl.LOCK_SH)
            found = read_holders(path)
            if (not found or found[0].run != self.run) and _is_alone(descriptor):
                self._take_over(descriptor, own)
                found = read_holders(path)
            if found and found[0].run == self.run and _still_there(path, descriptor):
                if all(one.pid != own.pid or not one.lives for one in found):
                    _write(descriptor, own)
                return descriptor
            os.close(descriptor)
            # Without a live process in its lines it may be held by another that is new, too.
            if any(one.lives for one in found) or time.monotonic() > give_up_s:
                raise InputError(refusal(self.job, found))
            time.sleep(random.uniform(0.001, 0.02))  # noqa: S311 - so that two do not keep step

    def _take_over(self, descriptor: int, own: Holder) -> None:
        """All of the run that held it are dead: remove what they left, and say whose it is now."""
        self.removed += remove_runs(self._folder, self.job, lambda run: run != self.run, held=True)
        os.ftruncate(descriptor, 0)
        _write(descriptor, own)
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # another may have been quicker: looked at again


def refusal(job: str, holders: list[Holder]) -> str:
    """Return why a run cannot take the name of another: where and since when that one lives."""
    living = next((one for one in holders if one.lives), None)
    if living is None:
        where = "processes of it hold its lock"
    else:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(living.since_s))
        where = f"process {living.pid}, folder {living.home or 'unknown'}, since {since}"
    return (
        f"a run of job {job} is alive on this machine ({where}): give this one another --job, or "
        "end that one first"
    )


def read_holders(path: Path) -> list[Holder]:
    """Return the lines of a lock file; lines that cannot be read are passed over."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        try:
            found.append(Holder(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


def remove_runs(
    folder: Path, job: str, unwanted: Callable[[str], bool], *, held: bool = False
) -> list[str]:
    """Remove the segments of the runs of `job` that are unwanted and not kept; return their names.

    The caller holds the job's lock in the name of a run that is not unwanted, so no other lives;
    `held` says that it holds it alone. A segment whose header says nothing goes only then, and
    only if none of the jobs that its name allows lives.
    """
    kept = {one.run for one in leftovers.kept_runs(folder) if one.job == job}
    removed = []
    for one in leftovers.segments(folder):
        if one.jobs == (job,):
            gone = unwanted(one.run) and one.run not in kept
        else:
            gone = held and job in one.jobs and _all_dead(folder, one.jobs, besides=job)
        if gone:
            (folder / one.name).unlink(missing_ok=True)
            removed.append(one.name)
    return removed


def _all_dead(folder: Path, jobs: tuple[str, ...], besides: str) -> bool:
    with ExitStack() as stack:
        return all(stack.enter_context(exclusive(folder, job)) for job in jobs if job != besides)


@contextmanager
def exclusive(folder: Path, job: str) -> Iterator[bool]:
    """Hold a dead job's lock, and remove its file at the end if nothing of the job is left there.

    Yields False if the job lives.
    """
    path = lock_path(folder, job)
    try:
        descriptor = _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, InputError):
        yield False
        return
    try:
        yield True
        # Under the lock: a newcomer that waits for it sees that its file is gone, and makes anew.
        if not any(one.jobs == (job,) for one in leftovers.segments(folder)):
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _is_alone(descriptor: int) -> bool:
    """Whether nobody else holds the lock; then it is held alone, else perhaps no longer."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write(descriptor: int, holder: Holder) -> None:
    os.lseek(descriptor, 0, os.SEEK_END)
    os.write(descriptor, (json.dumps(asdict(holder)) + "\n").encode())


def _lock(path: Path, operation: int) -> int:
    while True:
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o600)
        except PermissionError as error:
            raise InputError(
                "another user runs a job of this name on this machine; give the job another name",
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


def lock_path(folder: Path, job: str) -> Path:
    """Return where the lock of `job` lies."""
    return folder / f"{PREFIX}{job}{SUFFIX}"
