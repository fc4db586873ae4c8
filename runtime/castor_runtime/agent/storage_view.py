"""What an agent sees of persistent storage, which may take for ever to answer.

One question is under way at a time: storage that hangs keeps one thread, however often it is asked.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from castor_policy.agents.job_spec import JobSpec
from castor_runtime.agent.abandoned import abandonable
from castor_runtime.persistent.manifest import DamagedCheckpointError, ForeignStorageError
from castor_runtime.persistent.storage import (
    checkpoint_manifest,
    complete_manifests,
    damaged_files,
    require_own_folder,
    set_aside_damaged,
)

AT_ONCE_S = 0.25
"""Storage that answers within this is told of together with memory."""

_AGAIN_S = 1.0


class StorageView:
    """The folder of persistent checkpoints, as one agent sees it.

    Args:
        spec: the job.
    """

    def __init__(self, spec: JobSpec) -> None:
        self._folder = Path(spec.persistence.path)
        self._spec = spec
        self._listing: asyncio.Future[dict[int, str]] | None = None
        self._owned = False

    async def complete(self, fingerprint: str) -> tuple[int, ...]:
        """Return the complete iterations of this job, once storage has answered.

        Storage that refuses (an error of the file system) is asked again: it has not said "none".

        Args:
            fingerprint: of the job's checkpoints; "" where it is not known yet.
        """
        if not self._spec.persistence.path:
            return ()
        while True:
            if self._listing is not None and not self._listing.done():
                # What was asked before may have missed what was written since: then once more.
                await asyncio.wait([self._listing])
            self._listing = abandonable(self._list, "castor-storage")
            try:
                found = await asyncio.shield(self._listing)
            except OSError as error:
                sys.stderr.write(f"persistent storage {self._folder}: {error}; trying again\n")
                await asyncio.sleep(_AGAIN_S)
                continue
            own = (i for i, marked in found.items() if fingerprint in ("", marked))
            return tuple(sorted(own))

    def _list(self) -> dict[int, str]:
        found = complete_manifests(self._folder)
        return {
            iteration: manifest.attempt.fingerprint
            for iteration, manifest in found.items()
            if manifest.attempt.job == self._spec.job
        }

    async def refusal(self, fingerprint: str) -> str:
        """Return why the folder cannot be this job's, once storage has answered; "" if it can."""
        if not self._spec.persistence.path or self._owned:
            return ""
        folder, job = self._folder, self._spec.job
        try:
            await abandonable(
                lambda: require_own_folder(folder, job, fingerprint), "castor-storage-owner"
            )
        except (ForeignStorageError, DamagedCheckpointError) as error:
            return str(error)
        except OSError as error:
            # Whoever writes a checkpoint there looks again, and says so.
            sys.stderr.write(f"persistent storage {folder}: {error}\n")
            return ""
        self._owned = True
        return ""

    async def recheck(self, machine: int, iteration: int, fingerprint: str) -> None:
        """Read a machine's share of a checkpoint against its checksums; a damaged one is set aside.

        Gives up after the job's `storage_s`: the trainer that found it damaged has said so already.
        """
        folder, ranks = self._folder, list(self._spec.ranks_of(machine))
        job = self._spec.job

        def look() -> None:
            try:
                manifest = checkpoint_manifest(folder, iteration, job, fingerprint)
            except (ForeignStorageError, DamagedCheckpointError):
                return  # counts no longer already
            if damaged_files(folder, manifest, ranks):
                set_aside_damaged(folder, manifest)

        patience_s = self._spec.persistence.storage_s
        try:
            await asyncio.wait_for(abandonable(look, "castor-storage-check"), patience_s)
        except (TimeoutError, OSError) as error:
            why = f"{error}" or f"does not answer for {patience_s:g} s"
            sys.stderr.write(f"persistent storage {folder}: {why}; it was not checked again\n")
