"""One agent of the crowd: the policy's own Worker and Root and the runtime's own session.

Only its machine is missing: memory, trainers and peers answer at once, as if all went well.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import replace
from functools import partial
from typing import Any

from castor_policy.agents import effects as told
from castor_policy.agents.events import (
    TICK_S,
    AgentEvent,
    Fetched,
    Inspected,
    PeersAnswered,
    Progressed,
    Tick,
    TrainerResumed,
    Verified,
)
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.life import AgentLife
from castor_policy.agents.office import Tenure
from castor_policy.agents.own_report import Sign
from castor_policy.agents.worker import Worker
from castor_policy.store import StoreUnavailableError
from castor_runtime.agent.session import StoreSession

LOADING_S = 0.2
"""Trainers come up so fast: what is measured is who tells whom."""

ITERATION_S = 1.0
CROWD_TICK_S = 2.0
SCRIPT = "0" * 64
"""The hash of the script that all have: agents whose scripts differ are not in one job."""


class CountedStore:
    """A store shared by the agents of one process, that counts what each call and watch brings."""

    def __init__(self, store: Any, counts: Counter[str]) -> None:
        self._store = store
        self._counts = counts

    async def grant(self, ttl_s: float) -> int:
        self._counts["grants"] += 1
        return await self._store.grant(ttl_s)

    async def keep_alive(self, lease: int) -> float:
        self._counts["renewals"] += 1
        return await self._store.keep_alive(lease)

    async def revoke(self, lease: int) -> None:
        await self._store.revoke(lease)

    async def transact(self, txn: Any) -> Any:
        self._counts["writes"] += 1
        self._counts["write_bytes"] += sum(
            len(one.key) + len(one.value) for one in txn.operations if hasattr(one, "value")
        )
        return await self._store.transact(txn)

    async def get_prefix(self, prefix: str) -> Any:
        return self._read(await self._store.get_prefix(prefix))

    async def read(self, keys: Any) -> Any:
        return self._read(await self._store.read(keys))

    def _read(self, answer: Any) -> Any:
        self._counts["reads"] += 1
        self._counts["read_bytes"] += sum(len(one.key) + len(one.value) for one in answer[0])
        return answer

    def watch(self, prefix: str, revision: int) -> Any:
        return self._shown(self._store.watch(prefix, revision))

    def follow(self, keys: Any, revision: int) -> Any:
        return self._shown(self._store.follow(keys, revision))

    async def _shown(self, changes: Any) -> AsyncGenerator[Any, None]:
        async with contextlib.aclosing(changes):
            async for events in changes:
                self._counts["deliveries"] += len(events)
                self._counts["delivered_bytes"] += sum(
                    len(one.key) + len(one.value or "") for one in events
                )
                yield events

    def cluster(self) -> int:
        return int(self._store.cluster())

    async def close(self) -> None:
        """The store is all agents'."""


class Member:
    """One life of one agent.

    Args:
        spec: the job.
        name: of the agent.
        store: of the job.
        standby: it fills a place only when one is lost.
        campaigns: it may stand for root now.
    """

    def __init__(
        self, spec: JobSpec, name: str, store: CountedStore, *, standby: bool, campaigns: bool
    ) -> None:
        self.spec = spec
        self.name = name
        self.campaigns = campaigns
        self.decide_s = 0.0
        self.decisions = 0
        self._campaigning = False
        self._events: asyncio.Queue[AgentEvent] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self.session = StoreSession(store, spec, name, self._see)
        incarnation = f"{name}.{time.time_ns()}"
        worker = Worker(spec, name, incarnation, f"10.0.0.1:{len(name)}", standby, time.monotonic())
        self.life = AgentLife(worker, partial(Tenure.seen_in, self.session.view))

    async def run(self) -> None:
        """Live until cancelled."""
        self.session.open()
        try:
            report = replace(self.life.worker.report, script=SCRIPT)
            await self.session.claim(report, self._sign, lambda _said: None)
            for work in (self._tick, self._progress):
                self._spawn(work())
            while True:
                event = await self._events.get()
                for effect in self.life.obey(event, time.monotonic()):
                    self._carry_out(effect)
        finally:
            for task in tuple(self._tasks):
                task.cancel()
            await self.session.close()

    async def _sign(self, _holder: object) -> Sign:
        return Sign.DEAD

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _see(self, event: AgentEvent) -> None:
        self._events.put_nowait(event)
        began_s = time.thread_time()
        writes = [
            e for e in self.life.decide(event, time.monotonic()) if not isinstance(e, told.Log)
        ]
        self.decide_s += time.thread_time() - began_s
        self.decisions += self.life.root is not None
        for write in writes:
            self._spawn(self._write(write))

    async def _write(self, write: Any) -> None:
        root, done = self.life.root, None
        with contextlib.suppress(StoreUnavailableError):
            done = await self.session.write_as_root(write)
        for event in self.life.root_write_ended(write, root, done):
            self._see(event)

    async def _tick(self) -> None:
        while True:
            # The crowd shares two cores, and needs ticks only to stand for root.
            await asyncio.sleep(TICK_S if self.campaigns else CROWD_TICK_S)
            self._see(Tick())

    async def _progress(self) -> None:
        """Train: an iteration a second, whole in memory with the next one."""
        iteration = 0
        while True:
            await asyncio.sleep(ITERATION_S)
            worker = self.life.worker
            if worker.machine is not None and worker.plan is not None:
                iteration = max(iteration + 1, worker.plan.iteration + 1)
                self._see(Progressed(worker.generation, iteration, iteration - 1))

    # ---- what its machine does -------------------------------------------------------------------

    def _carry_out(self, effect: Any) -> None:
        match effect:
            case told.Report(report):
                self.session.report(replace(report, script=SCRIPT))
            case told.Campaign() if self.campaigns and not self._campaigning:
                self._spawn(self._campaign())
            case told.Inspect(generation, machine):
                held = (
                    dict.fromkeys(self.spec.ranks_held_by(machine), (1,)) if generation > 1 else {}
                )
                place = f"10.0.0.1:{machine}"
                self._see(Inspected(generation, held, (), place, effect.asked))
            case told.Verify(generation, rank):
                self._see(Verified(generation, rank, True))
            case told.Fetch(generation, rank):
                self._see(Fetched(generation, rank, effect.sources, 1, 0.0))
            case told.Offer(generation, rank):
                self._spawn(self._resume(generation, rank))
            case told.PingPeers(addresses):
                self._see(PeersAnswered(dict.fromkeys(addresses, self.life.worker.generation)))
            case _:
                pass

    async def _campaign(self) -> None:
        self._campaigning = True
        await self.session.campaign()
        self._campaigning = False

    async def _resume(self, generation: int, rank: int) -> None:
        await asyncio.sleep(LOADING_S)
        self._see(TrainerResumed(generation, rank))
