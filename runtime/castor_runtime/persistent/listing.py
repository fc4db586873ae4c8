"""What lies in a tier, for people: checkpoints that count, attempts, and what was set aside."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import unquote

from castor_runtime.persistent.manifest import (
    MANIFEST_NAME,
    Attempt,
    DamagedCheckpointError,
    ForeignStorageError,
    Manifest,
    read_manifest,
)
from castor_runtime.persistent.retention import attempt_of_name
from castor_runtime.persistent.storage import (
    DAMAGED_SUFFIX,
    files_folder,
    require_files,
    tag,
    tagged,
)
from castor_runtime.persistent.tier import Tier


class Condition(StrEnum):
    """Whether a checkpoint can be loaded."""

    COMPLETE = "complete"
    DAMAGED = "damaged"
    UNFINISHED = "unfinished"
    FOREIGN = "not Castor's"


@dataclass(frozen=True, slots=True)
class Listed:
    """A checkpoint, or what may become one.

    Attributes:
        name: its folder, below the tier's URL.
        iteration: of its state.
        job: whose; "" where it does not say.
        run: which run of the job wrote it; "" as above.
        generation: that had the state; -1 as above.
        ranks: whose files it has, or is to have; 0 as above.
        size_bytes: of its files, as far as they are there.
        written_s: when its newest file was written, in seconds since 1970; 0 if it has none.
        condition: whether it can be loaded.
        why: what is wrong with it, for people.
    """

    name: str
    iteration: int
    job: str
    run: str
    generation: int
    ranks: int
    size_bytes: int
    written_s: float
    condition: Condition
    why: str = ""


def listed(tier: Tier) -> list[Listed]:
    """Return all that is there, by iteration; sizes of files are looked at, not their content.

    Raises:
        OSError: the storage refuses.
    """
    found = [_checkpoint(tier, name, iteration) for iteration, name in tagged(tier)]
    aside = [name for name in tier.folders("") if name.endswith(DAMAGED_SUFFIX)]
    found += [_checkpoint(tier, name, None) for name in aside]
    used = {one.name for one in found} | {folder for one in found for folder in _files(tier, one)}
    for job in tier.folders(tier.attempts):
        for name in tier.folders(f"{tier.attempts}/{job}"):
            folder = f"{tier.attempts}/{job}/{name}"
            match = attempt_of_name(name)
            if match is not None and folder not in used:
                found.append(_attempt(tier, folder, unquote(job.removeprefix("job-")), *match))
    return sorted(found, key=lambda one: (one.iteration, one.generation))


def _files(tier: Tier, one: Listed) -> list[str]:
    """Return where the files of a listed checkpoint lie."""
    if one.generation < 0:
        return []
    attempt = Attempt(one.job, "-", one.iteration, one.generation, one.ranks, one.run)
    return [files_folder(tier, attempt)]


def _checkpoint(tier: Tier, name: str, iteration: int | None) -> Listed:
    manifest: Manifest | None = None
    condition, why = Condition.COMPLETE, ""
    folder = name
    try:
        manifest = read_manifest(tier, name)
        if manifest is None:
            condition, why = Condition.FOREIGN, f"it has no {MANIFEST_NAME}"
        else:
            folder = _folder(tier, name, manifest)
            require_files(tier, folder, manifest)
            if iteration is None:
                condition, why = Condition.DAMAGED, "set aside when it could not be loaded"
            elif manifest.attempt.iteration != iteration:
                condition, why = Condition.DAMAGED, "it was renamed"
    except (DamagedCheckpointError, ForeignStorageError) as error:
        condition, why = Condition.DAMAGED, str(error)
    of = manifest.attempt if manifest is not None else None
    size_bytes, written_s = _extent(tier, folder)
    return Listed(
        name=name,
        iteration=of.iteration if of else _iteration_of(name),
        job=of.job if of else "",
        run=of.run if of else "",
        generation=of.generation if of else -1,
        ranks=of.world_size if of else 0,
        size_bytes=size_bytes,
        written_s=written_s,
        condition=condition,
        why=why,
    )


def _folder(tier: Tier, name: str, manifest: Manifest) -> str:
    folder = files_folder(tier, manifest.attempt)
    # What was set aside has its files beside its manifest, where folders can be renamed.
    return name if folder == tag(manifest.attempt.iteration) else folder


def _iteration_of(name: str) -> int:
    return int(name.removesuffix(DAMAGED_SUFFIX).partition("-")[0].removeprefix("global_step"))


def _attempt(
    tier: Tier, folder: str, job: str, iteration: int, generation: int, run: str
) -> Listed:
    size_bytes, written_s = _extent(tier, folder)
    return Listed(
        name=folder,
        iteration=iteration,
        job=job,
        run=run,
        generation=generation,
        ranks=0,
        size_bytes=size_bytes,
        written_s=written_s,
        condition=Condition.UNFINISHED,
        why="machines are still writing it, or did not come to its end",
    )


def _extent(tier: Tier, folder: str) -> tuple[int, float]:
    """Return how large a folder's files are together, and when the newest was written."""
    there = tier.files(folder).values()
    newest_s = max((file.written_s for file in there), default=0.0)
    return sum(file.size_bytes for file in there), newest_s
