"""Which persistent checkpoints stay, and what becomes of attempts that nobody finishes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection
from pathlib import Path

from castor_runtime.persistent.durable_files import sync_folder
from castor_runtime.persistent.manifest import Attempt
from castor_runtime.persistent.storage import (
    OWN_FOLDER,
    attempt_folder,
    complete_manifests,
    publish_if_complete,
    published,
    tag,
    writing_folder,
)

_ATTEMPT = re.compile(r"global_step(\d+)-g(\d+)(?:-[0-9a-f]{16})?")


def prune(
    folder: Path,
    *,
    job: str,
    keep: int,
    generation: int,
    protect: Collection[int] = (),
) -> list[str]:
    """Remove what is not needed any more of this job, and return the names of it.

    Of the job's checkpoints that count, the `keep` newest stay, so the last one always does, and
    those in `protect`. An attempt goes once it can no longer be of use: it is of an earlier
    generation, or not newer than a checkpoint that counts of its own generation (machines write
    one attempt after the other). Other jobs' checkpoints, and what Castor did not write, are not
    touched. Every machine may call it at any time; a crash within it is made good by the next call.

    Args:
        folder: the persistent folder.
        job: whose checkpoints.
        keep: how many checkpoints stay, at least 1.
        generation: the job's current generation.
        protect: iterations that stay all the same, such as one that is being loaded.

    Raises:
        ValueError: `keep` is less than 1.
        OSError: the storage refuses.
    """
    if keep < 1:
        raise ValueError(f"at least one persistent checkpoint must stay: keep >= 1, got {keep}")
    own = {
        iteration: manifest
        for iteration, manifest in complete_manifests(folder).items()
        if manifest.attempt.job == job
    }
    stay = set(sorted(own)[-keep:]) | set(protect)
    unneeded = [folder / tag(iteration) for iteration in sorted(set(own) - stay)]
    newest = {
        manifest.attempt.generation: iteration
        for iteration, manifest in sorted(own.items())  # the last of a generation wins
    }
    for path in sorted(writing_folder(folder, job).glob("global_step*-g*")):
        match = _ATTEMPT.fullmatch(path.name)
        if match is None:
            continue
        iteration, made_in = int(match[1]), int(match[2])
        if made_in < generation or iteration <= newest.get(made_in, -1):
            unneeded.append(path)
    removed = [path.name for path in unneeded if _remove(folder, path)]
    _empty(_removal_folder(folder))
    return removed


def abandon(folder: Path, attempt: Attempt) -> None:
    """Remove an attempt that this machine cannot bring to its end, what others wrote of it, too.

    Nobody can complete it any more, and what it takes is room that the next one needs. The others
    see that it is gone (`is_abandoned`).

    Raises:
        OSError: the storage refuses.
    """
    _remove(folder, attempt_folder(folder, attempt))
    _empty(_removal_folder(folder))


def is_abandoned(folder: Path, attempt: Attempt) -> bool:
    """Whether a machine has given up an attempt that this machine has begun."""
    return not attempt_folder(folder, attempt).exists() and published(folder, attempt) is None


def drop_cut_off(folder: Path, job: str, generation: int) -> None:
    """Remove attempts of earlier generations: they were cut off, and take room.

    Raises:
        OSError: the storage refuses.
    """
    for path in sorted(writing_folder(folder, job).glob("global_step*-g*")):
        match = _ATTEMPT.fullmatch(path.name)
        if match is not None and int(match[2]) < generation:
            _remove(folder, path)
    _empty(_removal_folder(folder))


def publish_and_prune(
    folder: Path, attempt: Attempt, *, keep: int, protect: Collection[int] = ()
) -> bool:
    """Publish the attempt if all its ranks' receipts are there, and then prune; say whether it was.

    Every machine calls it after its own writing, and again every few seconds until it is true or
    `complete_iterations` knows a newer checkpoint (then this one may have been pruned already).

    Raises:
        DamagedCheckpointError: the name is taken by a damaged checkpoint, or a file is gone.
        ForeignStorageError: the name is taken by something that is not this job's.
        OSError: the storage refuses.
        ValueError: `keep` is less than 1.
    """
    if publish_if_complete(folder, attempt) is None:
        return False
    prune(folder, job=attempt.job, keep=keep, generation=attempt.generation, protect=protect)
    return True


def _removal_folder(folder: Path) -> Path:
    return folder / OWN_FOLDER / "removing"


def _remove(folder: Path, path: Path) -> bool:
    """Take a folder out of sight in one step, so that a crash leaves no half of it in place."""
    removal = _removal_folder(folder)
    try:
        removal.mkdir(parents=True, exist_ok=True)
    except OSError:
        if not path.exists():
            return False
        _clear(path)  # no room even for a folder: what frees room must not need any
        return True
    grave = removal / path.name
    _clear(grave)
    try:
        path.rename(grave)
    except FileNotFoundError:
        return False  # another machine was faster
    sync_folder(path.parent)
    return True


def _empty(removal: Path) -> None:
    if removal.is_dir():
        for path in sorted(removal.iterdir()):
            _clear(path)


def _clear(path: Path) -> None:
    # Several machines may clear at once; what one of them misses the next call finds.
    shutil.rmtree(path, ignore_errors=True)
