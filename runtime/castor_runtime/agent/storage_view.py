"""What an agent sees of persistent storage, which may take for ever to answer.

Of each tier one question is under way at a time: one that hangs keeps one thread, however often it
is asked, and holds up what the others say no longer than `GRACE_S`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

from castor_policy.agents.job_spec import JobSpec
from castor_runtime.agent.abandoned import abandonable
from castor_runtime.persistent.address import tier_at
from castor_runtime.persistent.manifest import DamagedCheckpointError, ForeignStorageError
from castor_runtime.persistent.storage import (
    checkpoint_manifest,
    complete_manifests,
    damaged_files,
    require_own_folder,
    set_aside_damaged,
)
from castor_runtime.persistent.tier import Tier

AT_ONCE_S = 0.25
"""Storage that answers within this is told of together with memory."""

GRACE_S: Final = 10.0
"""Once one tier has answered with something to go on from, others are waited for so long."""

_AGAIN_S: Final = 1.0
_AGAIN_AT_MOST_S: Final = 30.0

ResultT = TypeVar("ResultT")


class StorageView:
    """The tiers of persistent checkpoints, as one agent sees them.

    Args:
        spec: the job.
    """

    def __init__(self, spec: JobSpec) -> None:
        self._tiers = [TierView(spec, tier_at(url)) for url in spec.persistence.tiers]

    async def complete(self, fingerprint: str) -> tuple[int, ...]:
        """Return the complete iterations of this job, of all tiers together.

        A tier that refuses (an error of the file system) or hangs has not said "none": while none
        has said that there is one, all are waited for.

        Args:
            fingerprint: of the job's checkpoints; "" where it is not known yet.
        """
        asked = [tier.complete(fingerprint) for tier in self._tiers]
        found = await _with_grace(asked, bool)
        return tuple(sorted({iteration for one in found for iteration in one}))

    async def refusal(self, fingerprint: str) -> str:
        """Return why a tier cannot be this job's, once storage has answered; "" if all can."""
        asked = [tier.refusal(fingerprint) for tier in self._tiers]
        return next(filter(None, await _with_grace(asked, bool)), "")

    async def recheck(self, machine: int, iteration: int, fingerprint: str) -> None:
        """Read a machine's share of a checkpoint against its checksums; a damaged one is set aside.

        Gives up after the job's `storage_s`: the trainer that found it damaged has said so already.
        """
        asked = [tier.recheck(machine, iteration, fingerprint) for tier in self._tiers]
        await _with_grace(asked, bool)


class TierView:
    """One tier of a job, as one agent sees it.

    Args:
        spec: the job.
        tier: which.
    """

    def __init__(self, spec: JobSpec, tier: Tier) -> None:
        self._tier = tier
        self._spec = spec
        self._listing: asyncio.Future[dict[int, str]] | None = None
        self._owned = False

    async def complete(self, fingerprint: str) -> tuple[int, ...]:
        """Return the complete iterations of this job, once the tier has answered."""
        again_s = _AGAIN_S
        while True:
            if self._listing is not None and not self._listing.done():
                # What was asked before may have missed what was written since: then once more.
                await asyncio.wait([self._listing])
            self._listing = abandonable(self._list, "castor-storage")
            try:
                found = await asyncio.shield(self._listing)
            except OSError as error:
                self._say(f"{error}; trying again")
                await asyncio.sleep(again_s)
                again_s = min(2 * again_s, _AGAIN_AT_MOST_S)
                continue
            own = (i for i, marked in found.items() if fingerprint in ("", marked))
            return tuple(sorted(own))

    def _list(self) -> dict[int, str]:
        found = complete_manifests(self._tier)
        return {
            iteration: manifest.attempt.fingerprint
            for iteration, manifest in found.items()
            if manifest.attempt.job == self._spec.job
        }

    async def refusal(self, fingerprint: str) -> str:
        """Return why it cannot be this job's, once it has answered; "" if it can."""
        if self._owned:
            return ""
        tier, job = self._tier, self._spec.job
        try:
            await abandonable(
                lambda: require_own_folder(tier, job, fingerprint), "castor-storage-owner"
            )
        except (ForeignStorageError, DamagedCheckpointError) as error:
            return str(error)
        except OSError as error:
            # Whoever writes a checkpoint there looks again, and says so.
            self._say(str(error))
            return ""
        self._owned = True
        return ""

    async def recheck(self, machine: int, iteration: int, fingerprint: str) -> bool:
        """Set a checkpoint aside if a machine's share of it is damaged; say whether it was."""
        tier, ranks = self._tier, list(self._spec.ranks_of(machine))
        job = self._spec.job

        def look() -> bool:
            try:
                manifest = checkpoint_manifest(tier, iteration, job, fingerprint)
            except (ForeignStorageError, DamagedCheckpointError):
                return False  # counts no longer already
            damaged = damaged_files(tier, manifest, ranks)
            return bool(damaged) and set_aside_damaged(tier, manifest) is not None

        patience_s = self._spec.persistence.storage_s
        try:
            return await asyncio.wait_for(abandonable(look, "castor-storage-check"), patience_s)
        except (TimeoutError, OSError) as error:
            why = f"{error}" or f"does not answer for {patience_s:g} s"
            self._say(f"{why}; it was not checked again")
            return False

    def _say(self, what: str) -> None:
        told = what if self._tier.url in what else f"{self._tier.url}: {what}"
        sys.stderr.write(f"persistent storage {told}\n")


async def _with_grace(
    asked: Sequence[Coroutine[Any, Any, ResultT]], enough: Callable[[ResultT], bool]
) -> list[ResultT]:
    """Wait for all answers; once there is one that is enough, for the others a while longer."""
    waiting = {asyncio.ensure_future(one) for one in asked}
    found: list[ResultT] = []
    patience_s: float | None = None
    try:
        while waiting:
            began_s = asyncio.get_running_loop().time()
            done, waiting = await asyncio.wait(
                waiting, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                break
            found += [one.result() for one in done]
            if patience_s is not None:
                patience_s -= asyncio.get_running_loop().time() - began_s
            elif any(map(enough, found)):
                patience_s = GRACE_S
    finally:
        for one in waiting:
            one.cancel()
    return found
