"""How a persistent checkpoint comes to count, and how it is found again.

    FOLDER/latest                                  the newest checkpoint's name, for DeepSpeed
    FOLDER/zero_to_fp32.py, zero_to_torch.py       DeepSpeed's converters
    FOLDER/global_step300/                         a checkpoint: it has a manifest
        zero_pp_rank_0_mp_rank_00_model_states.pt      DeepSpeed's files of rank 0
        zero_pp_rank_0_mp_rank_00_optim_states.pt
        castor_rank_0_meta.bin                         what DeepSpeed has no place for
        castor_rank_0_extra.pt                         the same, as tensors, if there are any
        castor_rank_0_receipt.json
        castor-manifest.json
    FOLDER/.castor/writing/JOB/global_step300-g4/  the same while machines still write it

Each machine writes the files of its own ranks into the folder of the attempt, then a receipt a
rank. Whichever machine finds all receipts there writes the manifest and renames the folder to its
final name, which is one step for the file system: a checkpoint is there whole or not at all, for
Castor and for anybody who reads the folder with plain DeepSpeed. No machine needs another one's
memory, and none waits for another.
"""

from __future__ import annotations

import errno
import re
from pathlib import Path
from urllib.parse import quote

from castor_runtime.pacing import Pacer
from castor_runtime.persistent.durable_files import (
    UNFINISHED_SUFFIX,
    file_digest,
    sync_folder,
    write_durably,
)
from castor_runtime.persistent.manifest import (
    MANIFEST_NAME,
    Attempt,
    DamagedCheckpointError,
    ForeignStorageError,
    Manifest,
    Receipt,
    read_manifest,
    read_receipt,
    write_manifest,
)

OWN_FOLDER = ".castor"
_TAG = re.compile(r"global_step(\d+)")


def tag(iteration: int) -> str:
    """Return DeepSpeed's name for the checkpoint of an iteration."""
    return f"global_step{iteration}"


def writing_folder(folder: Path, job: str) -> Path:
    """Return where attempts of a job lie while they are written."""
    # A job's name may hold a slash; "." and ".." would lead elsewhere.
    return folder / OWN_FOLDER / "writing" / ("job-" + quote(job, safe=""))


def attempt_folder(folder: Path, attempt: Attempt) -> Path:
    """Return where the files of this attempt are written."""
    name = f"{tag(attempt.iteration)}-g{attempt.generation}"
    if attempt.run:
        name += f"-{attempt.run}"
    return writing_folder(folder, attempt.job) / name


def start_attempt(folder: Path, attempt: Attempt) -> Path | None:
    """Make the attempt's folder; None if the checkpoint is already there, whole.

    Every machine calls it; the first makes the folder.

    Raises:
        ForeignStorageError: the place is taken by something that is not this job's.
        OSError: the folder cannot be made.
    """
    if published(folder, attempt) is not None:
        return None
    staging = attempt_folder(folder, attempt)
    staging.mkdir(parents=True, exist_ok=True)
    return staging


def published(folder: Path, attempt: Attempt) -> Manifest | None:
    """Return the manifest of this job's checkpoint of the attempt's iteration, if it is there.

    Raises:
        DamagedCheckpointError: it is there, but its manifest is not as it was written.
        ForeignStorageError: its name is taken by something that is not this job's.
    """
    target = folder / tag(attempt.iteration)
    manifest = read_manifest(target)
    if manifest is not None:
        _require_own(target, manifest, attempt.job, attempt.fingerprint)
        return manifest
    if target.exists():
        raise ForeignStorageError(
            f"{target} exists and Castor did not write it; give another folder or move it away"
        )
    return None


def publish_if_complete(folder: Path, attempt: Attempt) -> Manifest | None:
    """Make the attempt a checkpoint if all ranks' receipts are there; else return None.

    Every machine calls it after its receipts, and again every few seconds until it returns a
    manifest: on NFS two machines that end together may each not see the other's receipt yet.
    Calling it too often, or on several machines at once, does no harm.

    Raises:
        DamagedCheckpointError: a file that a receipt names is not there.
        ForeignStorageError: the checkpoint's name is taken by something not this job's.
        OSError: the storage refuses.
    """
    existing = published(folder, attempt)
    if existing is not None:
        return existing
    staging = attempt_folder(folder, attempt)
    receipts = _receipts(staging, attempt)
    if receipts is None:
        return published(folder, attempt)  # another machine may have renamed it meanwhile
    manifest = Manifest(attempt, receipts)
    try:
        _require_files(staging, manifest)
        write_manifest(staging, manifest)
        staging.rename(folder / tag(attempt.iteration))
    except (DamagedCheckpointError, OSError) as error:
        # Another machine was faster: then the folder has its final name, or the name is taken.
        taken = getattr(error, "errno", errno.ENOENT)
        if taken not in {errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST}:
            raise
        existing = published(folder, attempt)
        if existing is None:
            raise
        return existing
    sync_folder(folder)
    # All ranks have their receipts, so these are of writers that died.
    for stale in (folder / tag(attempt.iteration)).glob(f".*{UNFINISHED_SUFFIX}"):
        stale.unlink(missing_ok=True)
    write_latest(folder)
    return manifest


def complete_iterations(folder: Path, fingerprint: str | None = None) -> tuple[int, ...]:
    """Return the iterations whose checkpoints count, ascending; those of one fingerprint if given.

    Looks at names and sizes of all files, not into them: see `damaged_files`.
    """
    return tuple(sorted(_complete(folder, fingerprint)))


def complete_manifests(folder: Path, fingerprint: str | None = None) -> dict[int, Manifest]:
    """Return the manifests of the checkpoints that count, by iteration."""
    return _complete(folder, fingerprint)


def checkpoint_manifest(folder: Path, iteration: int, job: str, fingerprint: str) -> Manifest:
    """Return the manifest of this job's checkpoint of an iteration.

    Raises:
        DamagedCheckpointError: there is no whole one.
        ForeignStorageError: it is another job's, or of another topology or layout.
    """
    target = folder / tag(iteration)
    manifest = read_manifest(target)
    if manifest is None:
        raise DamagedCheckpointError(f"{target} has no {MANIFEST_NAME}: it was never completed")
    _require_own(target, manifest, job, fingerprint)
    if manifest.attempt.iteration != iteration:
        raise DamagedCheckpointError(
            f"{target} holds iteration {manifest.attempt.iteration}: it was renamed"
        )
    return manifest


def require_own_folder(folder: Path, job: str, fingerprint: str) -> None:
    """Check, before training starts, that every checkpoint in the folder is this job's.

    Raises:
        ForeignStorageError: one is not, by name.
        DamagedCheckpointError: a manifest is not as it was written.
    """
    for _, path in _tagged(folder):
        manifest = read_manifest(path)
        if manifest is not None:
            _require_own(path, manifest, job, fingerprint)


def damaged_files(
    folder: Path, manifest: Manifest, ranks: list[int] | None = None, pacer: Pacer | None = None
) -> list[str]:
    """Read the files of these ranks (None: of all) and return the names that are not as written."""
    target = folder / tag(manifest.attempt.iteration)
    bad = []
    for record in manifest.files(ranks):
        try:
            found = file_digest(target / record.name, pacer)
        except OSError:
            bad.append(record.name)
            continue
        if found != (record.size_bytes, record.xxh3_128):
            bad.append(record.name)
    return bad


def set_aside_damaged(folder: Path, manifest: Manifest) -> Path | None:
    """Rename a damaged checkpoint so that it counts no longer, and return its new path.

    Every machine may call it; None if it is already gone, or another attempt took its place. It is
    kept: much of it may be of use to somebody who has lost everything else.
    """
    iteration = manifest.attempt.iteration
    target = folder / tag(iteration)
    try:
        found = read_manifest(target)
    except DamagedCheckpointError:
        found = manifest
    if found is None or found.attempt != manifest.attempt:
        return None
    aside = folder / f"{tag(iteration)}-g{manifest.attempt.generation}.damaged"
    try:
        target.rename(aside)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST}:
            return None
        raise
    sync_folder(folder)
    write_latest(folder)
    return aside


def write_latest(folder: Path) -> None:
    """Let DeepSpeed's `latest` name the newest checkpoint that counts; remove it if none does."""
    iterations = complete_iterations(folder)
    if iterations:
        write_durably(folder / "latest", tag(iterations[-1]).encode())
    else:
        (folder / "latest").unlink(missing_ok=True)


def _tagged(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    matches = ((_TAG.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in matches if match)


def _complete(folder: Path, fingerprint: str | None) -> dict[int, Manifest]:
    found = {}
    for iteration, path in _tagged(folder):
        try:
            manifest = read_manifest(path)
            if manifest is None or manifest.attempt.iteration != iteration:
                continue
            if fingerprint is not None and manifest.attempt.fingerprint != fingerprint:
                continue
            _require_files(path, manifest)
        except (DamagedCheckpointError, ForeignStorageError):
            continue
        found[iteration] = manifest
    return found


def _receipts(staging: Path, attempt: Attempt) -> tuple[Receipt, ...] | None:
    receipts = []
    for rank in range(attempt.world_size):
        receipt = read_receipt(staging, rank)
        if receipt is None:
            return None
        if receipt.attempt != attempt:
            raise ForeignStorageError(
                f"{staging}: rank {rank} wrote for {receipt.attempt}, expected {attempt}"
            )
        receipts.append(receipt)
    return tuple(receipts)


def _require_files(path: Path, manifest: Manifest) -> None:
    for record in manifest.files():
        try:
            size_bytes = (path / record.name).stat().st_size
        except OSError as error:
            raise DamagedCheckpointError(f"{path / record.name}: {error.strerror}") from error
        if size_bytes != record.size_bytes:
            raise DamagedCheckpointError(
                f"{path / record.name} has {size_bytes} B, was written with {record.size_bytes} B"
            )


def _require_own(path: Path, manifest: Manifest, job: str, fingerprint: str) -> None:
    attempt = manifest.attempt
    if attempt.job != job:
        raise ForeignStorageError(
            f"{path} is a checkpoint of job {attempt.job!r}, this is job {job!r}: give another "
            "folder, or move it away"
        )
    if attempt.fingerprint != fingerprint:
        raise ForeignStorageError(
            f"{path} is a checkpoint of job {job!r} with {attempt.world_size} ranks and "
            f"fingerprint {attempt.fingerprint}, this job has {fingerprint}: its machines, ranks, "
            "model or layout version are not the same; start as they were, or give another folder"
        )
