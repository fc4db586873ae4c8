"""What a worker's effects do in the world: a small function for each of them.

An effect that takes time is begun and answers with an event of its own, except `StopTrainers`,
`ParkTrainers`, `StopFetching` and `Inspect`: what follows them must not begin before they are done.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from functools import singledispatchmethod

from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.effects import (
    AskDrain,
    Campaign,
    Depose,
    DiscardOtherIterations,
    Exit,
    Fetch,
    Finalise,
    Forget,
    Hold,
    Inspect,
    Log,
    Offer,
    ParkTrainers,
    Persist,
    PingPeers,
    Redundant,
    Report,
    StartTrainers,
    StopFetching,
    StopTrainers,
    Verify,
    WatchPeers,
    WorkerEffect,
)
from castor_policy.agents.events import AgentEvent, PeersAnswered
from castor_runtime.agent.machine import Machine
from castor_runtime.agent.peer_links import PeerLinks
from castor_runtime.agent.session import StoreSession
from castor_runtime.background_tasks import BackgroundTasks
from castor_runtime.transport import PeerClient, PeerError

PING_TIMEOUT_S = 1.0


class WorkerEffects:
    """Carries out what the worker of one agent decides.

    Args:
        machine: its trainers and its checkpoint memory.
        session: its place in the store.
        client: asks peers.
        beside: what goes on beside the effects.
        stamp: completes a report by what the worker does not know.
        tell: writes into the event log.
        end: told that and how the agent is to end.
        emit: gets the worker's events.
    """

    def __init__(
        self,
        machine: Machine,
        session: StoreSession,
        client: PeerClient,
        beside: BackgroundTasks,
        stamp: Callable[[AgentReport], AgentReport],
        tell: Callable[[Log], None],
        end: Callable[[Exit], None],
        emit: Callable[[AgentEvent], None],
    ) -> None:
        self._machine = machine
        self._session = session
        self._client = client
        self._beside = beside
        self._stamp = stamp
        self._tell = tell
        self._end = end
        self._emit = emit
        self._links = PeerLinks(client, emit)
        self._campaigning = False

    def close(self) -> None:
        """End what goes on by itself."""
        self._links.close()

    @singledispatchmethod
    async def carry_out(self, effect: WorkerEffect) -> None:
        """Do what the worker wants done.

        Raises:
            TypeError: nothing is registered for an effect of this type.
        """
        raise TypeError(f"nothing carries out a {type(effect).__name__}")

    # ---- the store ------------------------------------------------------------------------------

    @carry_out.register(Report)
    async def _report(self, effect: Report) -> None:
        self._session.report(self._stamp(effect.report))

    @carry_out.register(Campaign)
    async def _campaign(self, _: Campaign) -> None:
        self._beside.spawn(self._run_campaign())

    async def _run_campaign(self) -> None:
        if not self._campaigning:
            self._campaigning = True
            try:
                await self._session.campaign()
            finally:
                self._campaigning = False

    @carry_out.register(Depose)
    async def _depose(self, effect: Depose) -> None:
        self._beside.spawn(self._session.depose(effect.agent))

    @carry_out.register(AskDrain)
    async def _ask_drain(self, effect: AskDrain) -> None:
        wish = replace(effect.wish, since_ns=time.time_ns())
        self._beside.spawn(self._session.wish(wish))

    # ---- trainers and memory --------------------------------------------------------------------

    @carry_out.register(StopTrainers)
    async def _stop_trainers(self, _: StopTrainers) -> None:
        await self._machine.stop_trainers()

    @carry_out.register(ParkTrainers)
    async def _park_trainers(self, _: ParkTrainers) -> None:
        await self._machine.park_trainers()

    @carry_out.register(Inspect)
    async def _inspect(self, effect: Inspect) -> None:
        await self._machine.inspect(effect)

    @carry_out.register(DiscardOtherIterations)
    async def _discard(self, effect: DiscardOtherIterations) -> None:
        self._machine.memory.keep_only(effect.iteration)

    @carry_out.register(StartTrainers)
    async def _start_trainers(self, effect: StartTrainers) -> None:
        self._machine.start_trainers(effect.plan, effect.machine)

    @carry_out.register(Verify)
    async def _verify(self, effect: Verify) -> None:
        self._machine.holding.verify(effect)

    @carry_out.register(Fetch)
    async def _fetch(self, effect: Fetch) -> None:
        self._machine.holding.fetch(effect)

    @carry_out.register(Offer)
    async def _offer(self, effect: Offer) -> None:
        self._machine.offer(effect)

    @carry_out.register(StopFetching)
    async def _stop_fetching(self, _: StopFetching) -> None:
        await self._machine.holding.stop_fetching()

    @carry_out.register(Redundant)
    async def _redundant(self, effect: Redundant) -> None:
        self._machine.redundant(effect.generation)

    @carry_out.register(Finalise)
    async def _finalise(self, effect: Finalise) -> None:
        self._machine.finalise(effect.generation)

    @carry_out.register(Persist)
    async def _persist(self, effect: Persist) -> None:
        self._machine.persist(effect.generation, effect.iteration)

    @carry_out.register(Hold)
    async def _hold(self, effect: Hold) -> None:
        self._machine.hold(effect.generation)

    @carry_out.register(Forget)
    async def _forget(self, _: Forget) -> None:
        self._machine.forget()

    # ---- the agent ------------------------------------------------------------------------------

    @carry_out.register(Log)
    async def _log(self, effect: Log) -> None:
        self._tell(effect)

    @carry_out.register(Exit)
    async def _exit(self, effect: Exit) -> None:
        self._end(effect)

    @carry_out.register(WatchPeers)
    async def _watch_peers(self, effect: WatchPeers) -> None:
        self._links.watch(effect)

    @carry_out.register(PingPeers)
    async def _ping_peers(self, effect: PingPeers) -> None:
        self._beside.spawn(self._ping(effect))

    async def _ping(self, effect: PingPeers) -> None:
        async def ask(machine: int, address: str) -> tuple[int, int] | None:
            try:
                answer = await self._client.ping(address, PING_TIMEOUT_S)
            except PeerError:
                return None
            return machine, int(answer["generation"])

        answers = await asyncio.gather(*(ask(m, a) for m, a in effect.addresses.items()))
        self._emit(PeersAnswered(dict(a for a in answers if a is not None)))
