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

Where nothing can be renamed (`ObjectTier`), files stay where they were written, and the manifest
is what comes last, in one step too:

    URL/latest                                     names the newest checkpoint's folder of files
    URL/global_step300/castor-manifest.json        a checkpoint
    URL/.castor/attempts/JOB/global_step300-g4/    its files, and those of attempts
"""

from __future__ import annotations

import re
from urllib.parse import quote

from castor_runtime.pacing import Pacer
from castor_runtime.persistent.manifest import (
    MANIFEST_NAME,
    Attempt,
    DamagedCheckpointError,
    ForeignStorageError,
    Manifest,
    Receipt,
    manifest_bytes,
    read_manifest,
    read_receipt,
    receipt_name,
)
from castor_runtime.persistent.tier import Tier, TierError

CONVERTERS = ("zero_to_fp32.py", "zero_to_torch.py")
"""DeepSpeed's own conversion scripts, which lie beside checkpoints."""

DAMAGED_SUFFIX = ".damaged"
"""Ends the name of a checkpoint that was set aside."""

_TAG = re.compile(r"global_step(\d+)")


def tag(iteration: int) -> str:
    """Return DeepSpeed's name for the checkpoint of an iteration."""
    return f"global_step{iteration}"


def attempts_folder(tier: Tier, job: str) -> str:
    """Return where attempts of a job lie while they are written."""
    # A job's name may hold a slash; "." and ".." would lead elsewhere.
    return f"{tier.attempts}/job-{quote(job, safe='')}"


def attempt_folder(tier: Tier, attempt: Attempt) -> str:
    """Return where the files of this attempt are written."""
    name = f"{tag(attempt.iteration)}-g{attempt.generation}"
    if attempt.run:
        name += f"-{attempt.run}"
    return f"{attempts_folder(tier, attempt.job)}/{name}"


def files_folder(tier: Tier, attempt: Attempt) -> str:
    """Return where the files of a checkpoint lie that this attempt has become."""
    return tier.files_of(tag(attempt.iteration), attempt_folder(tier, attempt))


def start_attempt(tier: Tier, attempt: Attempt) -> str | None:
    """Make the attempt's folder; None if the checkpoint is already there, whole.

    Every machine calls it; the first makes the folder.

    Raises:
        ForeignStorageError: the place is taken by something that is not this job's.
        OSError: the folder cannot be made.
    """
    if published(tier, attempt) is not None:
        return None
    staging = attempt_folder(tier, attempt)
    tier.begin(staging)
    return staging


def published(tier: Tier, attempt: Attempt) -> Manifest | None:
    """Return the manifest of this job's checkpoint of the attempt's iteration, if it is there.

    Raises:
        DamagedCheckpointError: it is there, but its manifest is not as it was written.
        ForeignStorageError: its name is taken by something that is not this job's.
    """
    target = tag(attempt.iteration)
    manifest = read_manifest(tier, target)
    if manifest is None and tier.is_there(target):
        manifest = read_manifest(tier, target)  # another machine may have just published it
        if manifest is None:
            raise ForeignStorageError(
                f"{tier.at(target)} exists and Castor did not write it; give another "
                "folder or move it away"
            )
    if manifest is not None:
        _require_own(tier.at(target), manifest, attempt.job, attempt.fingerprint)
    return manifest


def publish_if_complete(tier: Tier, attempt: Attempt) -> Manifest | None:
    """Make the attempt a checkpoint if all ranks' receipts are there; else return None.

    Every machine calls it after its receipts, and again every few seconds until it returns a
    manifest: on NFS two machines that end together may each not see the other's receipt yet.
    Calling it too often, or on several machines at once, does no harm.

    Raises:
        DamagedCheckpointError: a file that a receipt names is not there.
        ForeignStorageError: the checkpoint's name is taken by something not this job's.
        OSError: the storage refuses.
    """
    existing = published(tier, attempt)
    if existing is not None:
        return existing
    staging = attempt_folder(tier, attempt)
    receipts = _receipts(tier, staging, attempt)
    if receipts is None:
        return published(tier, attempt)  # another machine may have published it meanwhile
    manifest = Manifest(attempt, receipts)
    try:
        require_files(tier, staging, manifest)
        tier.publish(staging, tag(attempt.iteration), MANIFEST_NAME, manifest_bytes(manifest))
    except (DamagedCheckpointError, FileExistsError, FileNotFoundError):
        # Another machine was faster: then it is published, or the name is taken.
        existing = published(tier, attempt)
        if existing is None:
            raise
        return existing
    write_latest(tier)
    return manifest


def complete_iterations(tier: Tier, fingerprint: str | None = None) -> tuple[int, ...]:
    """Return the iterations whose checkpoints count, ascending; those of one fingerprint if given.

    Looks at names and sizes of all files, not into them: see `damaged_files`.
    """
    return tuple(sorted(complete_manifests(tier, fingerprint)))


def complete_manifests(tier: Tier, fingerprint: str | None = None) -> dict[int, Manifest]:
    """Return the manifests of the checkpoints that count, by iteration."""
    found = {}
    for iteration, name in tagged(tier):
        try:
            manifest = read_manifest(tier, name)
            if manifest is None or manifest.attempt.iteration != iteration:
                continue
            if fingerprint is not None and manifest.attempt.fingerprint != fingerprint:
                continue
            require_files(tier, files_folder(tier, manifest.attempt), manifest)
        except (DamagedCheckpointError, ForeignStorageError):
            continue
        found[iteration] = manifest
    return found


def checkpoint_manifest(tier: Tier, iteration: int, job: str, fingerprint: str) -> Manifest:
    """Return the manifest of this job's checkpoint of an iteration.

    Raises:
        DamagedCheckpointError: there is no whole one.
        ForeignStorageError: it is another job's, or of another topology or layout.
    """
    target = tier.at(tag(iteration))
    manifest = read_manifest(tier, tag(iteration))
    if manifest is None:
        raise DamagedCheckpointError(f"{target} has no {MANIFEST_NAME}: it was never completed")
    _require_own(target, manifest, job, fingerprint)
    if manifest.attempt.iteration != iteration:
        raise DamagedCheckpointError(
            f"{target} holds iteration {manifest.attempt.iteration}: it was renamed"
        )
    return manifest


def require_own_folder(tier: Tier, job: str, fingerprint: str) -> None:
    """Check, before training starts, that every checkpoint in the folder is this job's.

    Raises:
        ForeignStorageError: one is not, by name.
        DamagedCheckpointError: a manifest is not as it was written.
    """
    for _, name in tagged(tier):
        manifest = read_manifest(tier, name)
        if manifest is not None:
            _require_own(tier.at(name), manifest, job, fingerprint)


def damaged_files(
    tier: Tier, manifest: Manifest, ranks: list[int] | None = None, pacer: Pacer | None = None
) -> list[str]:
    """Read the files of these ranks (None: of all) and return the names that are not as written."""
    folder = files_folder(tier, manifest.attempt)
    bad = []
    for record in manifest.files(ranks):
        try:
            found = tier.digest(f"{folder}/{record.name}", pacer)
        except TierError:
            raise  # the tier is away, which says nothing of the file
        except OSError:
            bad.append(record.name)
            continue
        if found != record.content:
            bad.append(record.name)
    return bad


def set_aside_damaged(tier: Tier, manifest: Manifest) -> str | None:
    """Rename a damaged checkpoint so that it counts no longer, and return its new name.

    Every machine may call it; None if it is already gone, or another attempt took its place. It is
    kept: much of it may be of use to somebody who has lost everything else.
    """
    iteration = manifest.attempt.iteration
    try:
        found = read_manifest(tier, tag(iteration))
    except DamagedCheckpointError:
        found = manifest
    if found is None or found.attempt != manifest.attempt:
        return None
    aside = f"{tag(iteration)}-g{manifest.attempt.generation}{DAMAGED_SUFFIX}"
    if not tier.set_aside(tag(iteration), aside, MANIFEST_NAME):
        return None
    write_latest(tier)
    return aside


def write_latest(tier: Tier) -> None:
    """Let DeepSpeed's `latest` name the newest checkpoint that counts; remove it if none does."""
    found = complete_manifests(tier)
    if found:
        tier.write("latest", files_folder(tier, found[max(found)].attempt).encode())
    else:
        tier.delete("latest")


def tagged(tier: Tier) -> list[tuple[int, str]]:
    """Return all that is named as a checkpoint is: iteration and name, ascending."""
    matches = ((_TAG.fullmatch(name), name) for name in tier.folders(""))
    return sorted((int(match[1]), name) for match, name in matches if match)


def _receipts(tier: Tier, staging: str, attempt: Attempt) -> tuple[Receipt, ...] | None:
    there = tier.files(staging)
    if any(receipt_name(rank) not in there for rank in range(attempt.world_size)):
        return None
    receipts = []
    for rank in range(attempt.world_size):
        receipt = read_receipt(tier, staging, rank)
        if receipt is None:
            return None
        if receipt.attempt != attempt:
            raise ForeignStorageError(
                f"{tier.at(staging)}: rank {rank} wrote for {receipt.attempt}, expected {attempt}"
            )
        receipts.append(receipt)
    return tuple(receipts)


def require_files(tier: Tier, folder: str, manifest: Manifest) -> None:
    """Check that a folder has all files of a manifest, by name and size.

    Raises:
        DamagedCheckpointError: it lacks one, or one has another size; names it.
    """
    there = tier.files(folder)
    for record in manifest.files():
        found = there.get(record.name)
        name = tier.at(f"{folder}/{record.name}")
        if found is None:
            raise DamagedCheckpointError(f"{name} is not there")
        if found.size_bytes != record.size_bytes:
            raise DamagedCheckpointError(
                f"{name} has {found.size_bytes} B, was written with {record.size_bytes} B"
            )


def _require_own(where: str, manifest: Manifest, job: str, fingerprint: str) -> None:
    attempt = manifest.attempt
    if attempt.job != job:
        raise ForeignStorageError(
            f"{where} is a checkpoint of job {attempt.job!r}, this is job {job!r}: give another "
            "folder, or move it away"
        )
    if attempt.fingerprint != fingerprint:
        raise ForeignStorageError(
            f"{where} is a checkpoint of job {job!r} with {attempt.world_size} ranks and "
            f"fingerprint {attempt.fingerprint}, this job has {fingerprint}: its machines, ranks, "
            "model or layout version are not the same; start as they were, or give another folder"
        )
