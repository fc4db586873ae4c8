"""Checkpoint memory that goes: what is provably dead by itself, what is kept when the user says so.

Dead is what no process of its run holds the lock of, and nobody is going to start again: agents
under a launcher end with it, whereas an agent on its own may come back for its memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from castor_configs.errors import InputError
from castor_runtime.arena import leftovers
from castor_runtime.arena.job_lock import (
    SUFFIX,
    exclusive,
    lock_path,
    read_holders,
    refusal,
    remove_runs,
)
from castor_runtime.arena.segments import PREFIX, SHARED_MEMORY


@dataclass(frozen=True, slots=True)
class Freed:
    """Memory of one run that was given back.

    Attributes:
        job: its name.
        run: which run; "" where the headers could not be read.
        bytes: how much.
        kept: it was kept on purpose, after its job had given up.
    """

    job: str
    run: str
    bytes: int
    kept: bool


def remove_dead(folder: Path = SHARED_MEMORY, *, job: str | None = None) -> list[str]:
    """Remove the segments of this user's runs that are dead and neither kept nor to come again.

    Args:
        folder: where the machine's shared memory is.
        job: only this job's; None: every job's.

    Returns:
        The names of what was removed, lock files not counted, sorted.
    """
    # Listed before any lock is asked for: who makes a segment holds its lock by then.
    groups: dict[tuple[str, ...], list[leftovers.Segment]] = {
        (name,): [] for name in _locked_jobs(folder)
    }
    for one in leftovers.segments(folder):
        groups.setdefault(one.jobs, []).append(one)
    kept = {(one.job, one.run) for one in leftovers.kept_runs(folder)}
    removed: list[str] = []
    for jobs, found in sorted(groups.items()):
        if job is not None and job not in jobs:
            continue
        with ExitStack() as stack:
            if not all(stack.enter_context(exclusive(folder, owner)) for owner in jobs):
                continue
            waiting = {(o, run) for o in jobs if (run := _run_to_come_again(folder, o))}
            for one in found:
                whose = (one.jobs[0], one.run)
                if whose not in kept and whose not in waiting:
                    (folder / one.name).unlink(missing_ok=True)
                    removed.append(one.name)
    return sorted(removed)


def remove_run(job: str, run: str, folder: Path = SHARED_MEMORY) -> None:
    """Remove a run's memory, kept or not, once its last process on this machine is gone.

    Nothing while one lives, and it removes the rest itself.
    """
    with exclusive(folder, job) as dead:
        if dead:
            leftovers.unmark_kept(job, run, folder)
            for one in leftovers.segments(folder):
                if one.jobs == (job,) and one.run == run:
                    (folder / one.name).unlink(missing_ok=True)


def free(job: str | None = None, folder: Path = SHARED_MEMORY) -> list[Freed]:
    """Give back the memory of all runs that are not alive, kept or not: the user says so.

    Args:
        job: only of this job; None: of every job of this user.
        folder: where the machine's shared memory is.

    Raises:
        InputError: the job named is alive and nothing else of it is here, or nothing of it is.
    """
    found = leftovers.segments(folder)
    marks = leftovers.kept_runs(folder)
    jobs = {name for one in found for name in one.jobs} | {one.job for one in marks}
    freed: list[Freed] = []
    for name in sorted(jobs if job is None else jobs & {job}):
        freed += _free_job(name, folder, [one for one in found if one.jobs == (name,)])
    freed += _free_unreadable(folder, [one for one in found if len(one.jobs) > 1], job)
    if job is not None and not freed:
        with exclusive(folder, job) as dead:
            if not dead:
                raise InputError(refusal(job, read_holders(lock_path(folder, job))), key="--job")
        raise InputError(
            f"there is no checkpoint memory of a job {job!r} on this machine", key="--job"
        )
    return freed


def _free_job(job: str, folder: Path, found: Iterable[leftovers.Segment]) -> list[Freed]:
    kept = {one.run for one in leftovers.kept_runs(folder) if one.job == job}
    sizes: dict[str, int] = dict.fromkeys(kept, 0)
    for one in found:
        sizes[one.run] = sizes.get(one.run, 0) + one.bytes
    with exclusive(folder, job) as dead:
        if not dead:
            holders = read_holders(lock_path(folder, job))
            if not holders:
                return []
            # While a run lives no other of its name does: whatever else is here is dead, or kept.
            sizes.pop(holders[0].run, None)
        for run in sizes:
            leftovers.unmark_kept(job, run, folder)
        remove_runs(folder, job, lambda run: run in sizes)
    return [Freed(job, run, size, run in kept) for run, size in sorted(sizes.items())]


def _free_unreadable(
    folder: Path, found: Iterable[leftovers.Segment], job: str | None
) -> list[Freed]:
    freed = []
    for one in found:
        if job is not None and job not in one.jobs:
            continue
        with ExitStack() as stack:
            if all(stack.enter_context(exclusive(folder, owner)) for owner in one.jobs):
                (folder / one.name).unlink(missing_ok=True)
                freed.append(Freed(one.jobs[-1], "", one.bytes, kept=False))
    return freed


def _locked_jobs(folder: Path) -> list[str]:
    return sorted(
        path.name[len(PREFIX) : -len(SUFFIX)]
        for path in folder.glob(f"{PREFIX}*{SUFFIX}")
        if path.is_file() and not path.is_symlink()
    )


def _run_to_come_again(folder: Path, job: str) -> str:
    """Return the run whose agents may be started again on this machine; "" for none."""
    holders = read_holders(lock_path(folder, job))
    return holders[0].run if any(one.comes_again for one in holders) else ""
