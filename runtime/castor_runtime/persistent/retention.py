"""Which persistent checkpoints stay, and what becomes of attempts that nobody finishes."""

from __future__ import annotations

import re
from collections.abc import Collection

from castor_runtime.persistent.manifest import (
    Attempt,
    DamagedCheckpointError,
    ForeignStorageError,
    read_manifest,
)
from castor_runtime.persistent.storage import (
    DAMAGED_SUFFIX,
    attempt_folder,
    attempts_folder,
    complete_manifests,
    files_folder,
    publish_if_complete,
    published,
    tag,
    tagged,
)
from castor_runtime.persistent.tier import Tier

LEFT_OUT = 75
"""Exit code of what writes a share: the tier is busy with an earlier checkpoint."""

_ATTEMPT = re.compile(r"global_step(\d+)-g(\d+)(?:-([0-9a-f]{16}))?")


def prune(
    tier: Tier,
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
        tier: where they lie.
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
        for iteration, manifest in complete_manifests(tier).items()
        if manifest.attempt.job == job
    }
    stay = set(sorted(own)[-keep:]) | set(protect)
    unneeded: list[str] = []
    for iteration in sorted(set(own) - stay):
        folders = (tag(iteration), files_folder(tier, own[iteration].attempt))
        unneeded += dict.fromkeys(folders)  # first what makes it count
    newest = {
        manifest.attempt.generation: iteration
        for iteration, manifest in sorted(own.items())  # the last of a generation wins
    }
    outdated = [
        path
        for path, iteration, made_in in _attempts(tier, job)
        if made_in < generation or iteration <= newest.get(made_in, -1)
    ]
    unneeded += _without_manifest(tier, [path for path in outdated if path not in unneeded])
    return [path.rpartition("/")[2] for path in unneeded if tier.remove(path)]


def abandon(tier: Tier, attempt: Attempt) -> None:
    """Remove an attempt that this machine cannot bring to its end, what others wrote of it, too.

    Nobody can complete it any more, and what it takes is room that the next one needs. The others
    see that it is gone (`is_abandoned`).

    Raises:
        OSError: the storage refuses.
    """
    tier.remove(attempt_folder(tier, attempt))


def is_abandoned(tier: Tier, attempt: Attempt) -> bool:
    """Whether a machine has given up an attempt that this machine has begun."""
    begun = tier.is_there(attempt_folder(tier, attempt))
    return not begun and published(tier, attempt) is None


def under_way(tier: Tier, attempt: Attempt) -> list[int]:
    """Return the iterations of other attempts of this generation that may still be completed.

    While there is one, none is begun: storage that is slower than checkpoints are due would else
    have each machine write others than the rest, and no checkpoint would ever be whole.

    Raises:
        OSError: the storage refuses.
    """
    newest = max((iteration for iteration, _ in tagged(tier)), default=-1)
    return [
        iteration
        for path, iteration, made_in in _attempts(tier, attempt.job)
        if made_in == attempt.generation
        and iteration > newest
        and path != attempt_folder(tier, attempt)
        and tier.is_there(path)
    ]


def drop_cut_off(tier: Tier, job: str, generation: int) -> None:
    """Remove attempts of earlier generations: they were cut off, and take room.

    Raises:
        OSError: the storage refuses.
    """
    cut_off = [path for path, _, made_in in _attempts(tier, job) if made_in < generation]
    for path in _without_manifest(tier, cut_off):
        tier.remove(path)


def publish_and_prune(
    tier: Tier, attempt: Attempt, *, keep: int, protect: Collection[int] = ()
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
    if publish_if_complete(tier, attempt) is None:
        return False
    prune(tier, job=attempt.job, keep=keep, generation=attempt.generation, protect=protect)
    return True


def attempt_of_name(name: str) -> tuple[int, int, str] | None:
    """Return iteration, generation and run that an attempt's folder is named after."""
    match = _ATTEMPT.fullmatch(name)
    return None if match is None else (int(match[1]), int(match[2]), match[3] or "")


def _attempts(tier: Tier, job: str) -> list[tuple[str, int, int]]:
    """Return the folders of a job's attempts, with iteration and generation."""
    above = attempts_folder(tier, job)
    found = ((name, attempt_of_name(name)) for name in tier.folders(above))
    return [(f"{above}/{name}", of[0], of[1]) for name, of in found if of]


def _without_manifest(tier: Tier, attempts: Collection[str]) -> list[str]:
    """Return those that did not become a checkpoint, be it whole or damaged by now."""
    if not attempts:
        return []
    aside = [name for name in tier.folders("") if name.endswith(DAMAGED_SUFFIX)]
    found = set()
    for name in [*(name for _, name in tagged(tier)), *aside]:
        try:
            manifest = read_manifest(tier, name)
        except (DamagedCheckpointError, ForeignStorageError):
            continue
        if manifest is not None:
            found.add(files_folder(tier, manifest.attempt))
    return [path for path in attempts if path not in found]
