"""Brings this machine's parts into its checkpoint memory, and says what is there."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any

from castor_configs.errors import InputError
from castor_policy.agents.effects import Fetch, Verify
from castor_policy.agents.events import (
    Fetched,
    FetchFailed,
    MemoryRefused,
    StorageRead,
    Verified,
    WorkerEvent,
)
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.store_keys import layout_prefix
from castor_policy.job_options import DEGRADED
from castor_runtime.agent.memory import CheckpointMemory, RankLayout
from castor_runtime.agent.session import StoreSession
from castor_runtime.agent.storage_view import AT_ONCE_S, StorageView
from castor_runtime.arena import ArenaError
from castor_runtime.background_tasks import BackgroundTasks
from castor_runtime.transport import (
    PartMissingError,
    PeerClient,
    PeerError,
    PeerRefusedError,
    PeerUnreachableError,
)

OWNER_CHECK_S = 2.0
"""Loading waits so long for storage to say whose checkpoints it holds."""


class Holding:
    """Checkpoint memory with what it needs from elsewhere: sizes from the store, parts from peers.

    Args:
        spec: the job.
        memory: of this machine.
        session: the store.
        client: fetches from peers.
        emit: gets the worker's events.
        begin: runs what a generation's trainers wait for, until it is done or they are stopped.

    Attributes:
        fingerprint: of the job's checkpoints; "" before any trainer has told its layout.
    """

    def __init__(
        self,
        spec: JobSpec,
        memory: CheckpointMemory,
        session: StoreSession,
        client: PeerClient,
        emit: Callable[[WorkerEvent], None],
        begin: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self.fingerprint = ""
        self._spec = spec
        self._memory = memory
        self._session = session
        self._client = client
        self._emit = emit
        self._begin = begin
        self._fetches: set[asyncio.Task[None]] = set()
        self._ready = False
        self._storage = StorageView(spec)
        self._beside = BackgroundTasks(lambda why: sys.stderr.write(f"checkpoint memory: {why}\n"))

    async def prepare(self, generation: int, machine: int, message: Mapping[str, Any]) -> bool:
        """Have memory for what a trainer says it will checkpoint; False if that is refused."""
        layout = RankLayout.from_message(message)
        known = await self._publish(layout)
        if replace(layout, meta_bytes=known.meta_bytes) != known:
            reason = (
                f"rank {layout.rank} trains another model than the job's first trainers did: its "
                f"part is {layout.data_bytes} bytes of {layout.fingerprint}, theirs was "
                f"{known.data_bytes} bytes of {known.fingerprint}; start a new job for it"
            )
            self._emit(MemoryRefused(generation, reason))
            return False
        if not await self._hold(generation, machine, wait=True):
            return False
        checking = self._beside.spawn(self._check_storage(generation))
        # A folder that answers is checked before anything is loaded; a hung one holds up nobody.
        await asyncio.wait([checking], timeout=OWNER_CHECK_S)
        return not (checking.done() and checking.result())

    async def _check_storage(self, generation: int) -> bool:
        """Refuse the job if the folder for persistent checkpoints holds another's; say whether."""
        refused = await self._storage.refusal(self.fingerprint)
        if refused:
            self._emit(MemoryRefused(generation, refused))
        return bool(refused)

    async def recheck_persistent(self, machine: int, iteration: int) -> None:
        """Read a persistent checkpoint against its checksums; a damaged one counts no longer."""
        await self._storage.recheck(machine, iteration, self.fingerprint)

    def make_ready(self) -> None:
        """Take and fault in memory for some machine's parts, while this agent fills none.

        Which machine it will be nobody knows; the memory is given to the ranks that come to belong
        here, where their sizes are the same (`Arena.reassign`).
        """
        ranks = self._spec.machines * self._spec.ranks_per_machine
        if self._ready or len(self._session.layouts()) < ranks:
            return
        self._ready = True
        self._beside.spawn(self._take_some())

    async def _take_some(self) -> None:
        layouts = self._layouts()
        self.fingerprint = layouts[0].fingerprint
        try:
            self._memory.hold(0, layouts)
        except (InputError, ArenaError) as error:
            # It will be asked for again, and refused by name, when this agent is needed.
            sys.stderr.write(f"checkpoint memory cannot be prepared ahead of time: {error}\n")
            return
        await self._memory.touch()

    def forget(self) -> None:
        """Give the memory back."""
        self._memory.forget()
        self._ready = False

    async def inspect(
        self, generation: int, machine: int, *, thorough: bool
    ) -> tuple[dict[int, tuple[int, ...]], tuple[int, ...] | None]:
        """Return the iterations held by rank, and the persistent ones; trainers must be dead.

        Storage that does not answer at once is told of later (`StorageRead`), and None until then.
        """
        await self._hold(generation, machine, wait=False)
        if thorough:
            for rank, iterations in self._memory.holdings().items():
                for iteration in iterations:
                    await self._memory.verify(rank, iteration)
        reading = self._beside.spawn(self._storage.complete(self.fingerprint))
        await asyncio.wait([reading], timeout=AT_ONCE_S)
        if reading.done():
            return self._memory.holdings(), reading.result()
        self._beside.spawn(self._tell_of_storage(generation, reading))
        return self._memory.holdings(), None

    async def _tell_of_storage(
        self, generation: int, reading: asyncio.Task[tuple[int, ...]]
    ) -> None:
        self._emit(StorageRead(generation, await reading))

    def make_room(self, generation: int, rank: int, meta_bytes: int) -> None:
        """Have room for a part's metadata, which have grown; the job ends if there is no memory."""
        self._begin(self._make_room(generation, rank, meta_bytes))

    async def _make_room(self, generation: int, rank: int, meta_bytes: int) -> None:
        try:
            await self._memory.make_room(rank, meta_bytes)
        except (InputError, OSError) as error:
            self._emit(MemoryRefused(generation, str(error)))
        except PartMissingError:
            pass  # given up since: the trainer that asks is of an earlier generation

    def verify(self, effect: Verify) -> None:
        """Read a part against its checksums."""
        self._begin(self._verify(effect.generation, effect.rank, effect.iteration))

    async def _verify(self, generation: int, rank: int, iteration: int) -> None:
        self._emit(Verified(generation, rank, await self._memory.verify(rank, iteration)))

    def fetch(self, effect: Fetch) -> None:
        """Fetch a part from its holders into own memory."""
        fetching = self._begin(self._fetch(effect))
        self._fetches.add(fetching)
        fetching.add_done_callback(self._fetches.discard)

    async def stop_fetching(self) -> None:
        """Give up what is still being fetched; nobody writes it any more when this returns."""
        fetches = list(self._fetches)
        for fetching in fetches:
            fetching.cancel()
        await asyncio.gather(*fetches, return_exceptions=True)

    async def _fetch(self, effect: Fetch) -> None:
        began_s = time.monotonic()
        try:
            writing = self._memory.replica(effect.rank).begin(
                effect.iteration, effect.generation, None
            )
            got = await self._client.fetch(
                effect.addresses,
                effect.rank,
                effect.iteration,
                bytes.fromhex(self.fingerprint),
                writing,
                # The first update waits for others' parts, too, unless training goes on degraded.
                urgent=effect.urgent or self._spec.recovery.redundancy != DEGRADED,
            )
        except (PeerError, ArenaError) as error:
            machines = ", ".join(map(str, effect.sources))
            reason = f"machine{'s' * (len(effect.sources) > 1)} {machines}: {error}"
            unreached = isinstance(error, PeerUnreachableError | PeerRefusedError)
            self._emit(FetchFailed(effect.generation, effect.rank, reason, unreached))
            return
        seconds = time.monotonic() - began_s
        machine_at = dict(zip(effect.addresses, effect.sources, strict=True))
        sources = tuple(machine_at[address] for address in got.chunks_from)
        self._emit(Fetched(effect.generation, effect.rank, sources, got.bytes, seconds))

    async def _publish(self, layout: RankLayout) -> RankLayout:
        rank = str(layout.rank)
        if rank not in self._session.layouts():
            await self._session.write_once(layout_prefix(self._spec.job) + rank, layout.to_json())
        while rank not in self._session.layouts():
            await self._session.wait_for_change()
        return RankLayout.from_message(json.loads(self._session.layouts()[rank]))

    def _layouts(self) -> dict[int, RankLayout]:
        return {
            int(rank): RankLayout.from_message(json.loads(text))
            for rank, text in self._session.layouts().items()
        }

    async def _hold(self, generation: int, machine: int, *, wait: bool) -> bool:
        """Take the memory that belongs to `machine`; False if sizes are not known, or refused."""
        needed = {str(rank) for rank in self._spec.ranks_held_by(machine)}
        while not needed <= set(self._session.layouts()):
            if not wait:
                return False
            await self._session.wait_for_change()
        layouts = self._layouts()
        self.fingerprint = layouts[min(layouts)].fingerprint
        before = self._memory.segments()
        try:
            self._memory.hold(machine, layouts)
        except (InputError, ArenaError) as error:
            self._emit(MemoryRefused(generation, str(error)))
            return False
        if self._memory.segments() != before:
            touching = self._beside.spawn(self._memory.touch())
            if wait:  # else a fetch is under way at once, and touches as it goes
                await touching
        return True

    def close(self) -> None:
        """Leave behind what still waits for storage."""
        self._beside.cancel()
