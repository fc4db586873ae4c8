"""What says that a persistent checkpoint is whole: receipts of ranks, and the manifest over them.

Both are JSON and carry a digest of themselves. A receipt is written after a rank's files, the
manifest after all receipts; a folder without a manifest that reads back whole is no checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from xxhash import xxh3_128_hexdigest

from castor_runtime.persistent.durable_files import FileRecord
from castor_runtime.persistent.tier import Tier

MANIFEST_VERSION = 1
MANIFEST_NAME = "castor-manifest.json"


class DamagedCheckpointError(Exception):
    """A persistent checkpoint lacks a file, or a file is not what was written; names the file."""


class ForeignStorageError(Exception):
    """A persistent checkpoint is of another job, topology or layout version; names both."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One writing of one iteration, by all machines of a job.

    Files of two attempts never meet in one checkpoint: where the arithmetic does not repeat bit
    for bit, the same iteration of two generations has two states.

    Attributes:
        job: name of the job.
        fingerprint: of layout version, topology and sections; equal on every rank.
        iteration: the iteration whose state is written.
        generation: the job's generation that had this state on every rank.
        world_size: number of ranks, each of which owes its files.
        run: which run of the job wrote it; "" before runs were told apart. A later run of the job
            may go on from it, but never mixes its own files with it.
    """

    job: str
    fingerprint: str
    iteration: int
    generation: int
    world_size: int
    run: str = ""

    def __post_init__(self) -> None:
        if not self.job or not self.fingerprint:
            raise ValueError("an attempt needs the job's name and its fingerprint")
        if self.iteration < 0 or self.generation < 0 or self.world_size < 1:
            raise ValueError(
                "expected iteration >= 0, generation >= 0 and world_size >= 1, got "
                f"{self.iteration}, {self.generation}, {self.world_size}"
            )


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one rank wrote in one attempt."""

    attempt: Attempt
    rank: int
    files: tuple[FileRecord, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A whole checkpoint.

    Attributes:
        attempt: what it is a checkpoint of.
        receipts: one a rank, in order of rank.
    """

    attempt: Attempt
    receipts: tuple[Receipt, ...]

    def __post_init__(self) -> None:
        ranks = [receipt.rank for receipt in self.receipts]
        if ranks != list(range(self.attempt.world_size)):
            raise ValueError(
                f"a manifest needs ranks 0..{self.attempt.world_size - 1}, got {ranks}"
            )
        for receipt in self.receipts:
            if receipt.attempt != self.attempt:
                raise ValueError(f"rank {receipt.rank} is of another attempt: {receipt.attempt}")

    def files(self, ranks: Sequence[int] | None = None) -> tuple[FileRecord, ...]:
        """Return the files of these ranks, or of all, in order of rank."""
        chosen = range(self.attempt.world_size) if ranks is None else sorted(set(ranks))
        return tuple(record for rank in chosen for record in self.receipts[rank].files)

    @property
    def total_bytes(self) -> int:
        """Size of all files."""
        return sum(record.size_bytes for record in self.files())


def receipt_name(rank: int) -> str:
    """Name of a rank's receipt in the checkpoint's folder."""
    return f"castor_rank_{rank}_receipt.json"


def write_receipt(tier: Tier, folder: str, receipt: Receipt) -> None:
    """Write a rank's receipt, whole or not at all; its files must lie in the folder already."""
    record = {
        "attempt": asdict(receipt.attempt),
        "rank": receipt.rank,
        "files": _files_record(receipt.files),
    }
    tier.write(f"{folder}/{receipt_name(receipt.rank)}", _sealed(record))


def read_receipt(tier: Tier, folder: str, rank: int) -> Receipt | None:
    """Return a rank's receipt, or None if it has not written its files yet.

    Raises:
        DamagedCheckpointError: there is one, but not as it was written.
    """
    name = f"{folder}/{receipt_name(rank)}"
    record = _opened(tier, name)
    if record is None:
        return None
    try:
        return _receipt(Attempt(**record["attempt"]), record["rank"], record["files"])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedCheckpointError(f"{tier.at(name)} is no receipt: {error}") from error


def manifest_bytes(manifest: Manifest) -> bytes:
    """Return the content of a manifest's file."""
    record = {
        "attempt": asdict(manifest.attempt),
        "ranks": [_files_record(receipt.files) for receipt in manifest.receipts],
    }
    return _sealed(record)


def read_manifest(tier: Tier, folder: str) -> Manifest | None:
    """Return the manifest of a checkpoint's folder, or None if there is none.

    Raises:
        DamagedCheckpointError: there is one, but not as it was written.
        ForeignStorageError: it is of another version of the format.
    """
    name = f"{folder}/{MANIFEST_NAME}"
    record = _opened(tier, name)
    if record is None:
        return None
    try:
        attempt = Attempt(**record["attempt"])
        receipts = (_receipt(attempt, rank, files) for rank, files in enumerate(record["ranks"]))
        return Manifest(attempt, tuple(receipts))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedCheckpointError(f"{tier.at(name)} is no manifest: {error}") from error


def _files_record(files: Sequence[FileRecord]) -> list[dict[str, Any]]:
    return [asdict(record) for record in files]


def _receipt(attempt: Attempt, rank: int, files: list[dict[str, Any]]) -> Receipt:
    return Receipt(attempt, rank, tuple(FileRecord(**record) for record in files))


def _digest(record: Mapping[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return xxh3_128_hexdigest(text.encode())


def _sealed(record: dict[str, Any]) -> bytes:
    sealed = {"castor_manifest_version": MANIFEST_VERSION, **record}
    text = json.dumps({**sealed, "xxh3_128": _digest(sealed)}, sort_keys=True, indent=1)
    return (text + "\n").encode()


def _opened(tier: Tier, name: str) -> dict[str, Any] | None:
    try:
        text = tier.read(name)
    except FileNotFoundError:
        return None
    path = tier.at(name)
    try:
        record: dict[str, Any] = json.loads(text)
        digest = record.pop("xxh3_128")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedCheckpointError(f"{path} is damaged: {error}") from error
    if digest != _digest(record):
        raise DamagedCheckpointError(f"{path} is damaged: its digest does not match its content")
    version = record.get("castor_manifest_version")
    if version != MANIFEST_VERSION:
        raise ForeignStorageError(
            f"{path} is of version {version} of the format, this Castor reads {MANIFEST_VERSION}"
        )
    return record
