"""This machine's trainers: what the worker's effects do here, but for parts and the store."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from castor_policy.agents.effects import Inspect, Offer
from castor_policy.agents.events import (
    Finalised,
    Inspected,
    TrainerHeld,
    TrainerHung,
    TrainerLostPeer,
    TrainerRefused,
    TrainerResumed,
    WorkerEvent,
)
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Plan
from castor_policy.recovery import Tier
from castor_records.events.failures import Resumed, Retrieved
from castor_records.events.line import event_of
from castor_runtime.agent import rendezvous
from castor_runtime.agent.event_log import EventLog
from castor_runtime.agent.holding import Holding
from castor_runtime.agent.memory import CheckpointMemory
from castor_runtime.agent.options import AgentOptions
from castor_runtime.agent.persisting import Described, Persister
from castor_runtime.agent.session import StoreSession
from castor_runtime.agent.trainer_host import TrainerHost
from castor_runtime.agent.trainer_link import TrainerLink
from castor_runtime.agent.trainers import Trainers
from castor_runtime.arena import ControlBlock
from castor_runtime.background_tasks import BackgroundTasks
from castor_runtime.ports import Ports
from castor_runtime.transport import PeerClient


class Machine:
    """Carries out what the worker decides for trainers, and tells it what came of it.

    Attributes:
        holding: brings parts into memory; what it begins for a generation ends with its trainers.

    Args:
        spec: the job.
        options: of the agent: its name, its folder for logs, and the address at which this
            machine's first trainer can be met.
        memory: its checkpoint memory.
        host: runs the trainers.
        session: the store, for the parts' layouts.
        client: fetches from peers.
        log: the event log.
        emit: gets the worker's events.
    """

    def __init__(
        self,
        spec: JobSpec,
        options: AgentOptions,
        memory: CheckpointMemory,
        host: TrainerHost,
        session: StoreSession,
        client: PeerClient,
        log: EventLog,
        emit: Callable[[WorkerEvent], None],
    ) -> None:
        self.spec = spec
        self.memory = memory
        self.generation = 0
        self.number: int | None = None
        self._folder = options.folder
        self._listen = options.listen
        self._ports = Ports.parse(options.ports).of_rendezvous
        self._host = host
        self._log = log
        self._emit = emit
        self._beside = BackgroundTasks(self._failed)
        self.holding = Holding(spec, memory, session, client, emit, self._beside.spawn)
        self._persister = Persister(spec, options.folder, host, log, emit)
        self.link = TrainerLink(spec.job, self._on_message)
        self.control = ControlBlock.create(spec.job, spec.run, options.name, spec.ranks_per_machine)
        self.trainers = Trainers(
            spec, options, host, self.link, self.control, log, emit, self._beside, self._holds
        )
        self._offers: dict[int, Offer] = {}
        self._asked: set[int] = set()
        self._described: dict[int, Described] = {}
        self._redundant = 0
        self._learned: str | None = None
        """What the trainers know of their network, in their own words."""

    # ---- trainers ------------------------------------------------------------------------------

    async def stop_trainers(self) -> None:
        """Kill the trainers, and give up what was begun for them."""
        await self.trainers.stop()
        self._forget_asked()

    async def park_trainers(self) -> None:
        """Have the trainers leave that can, and kill the others; give up what was begun for any."""
        await self.trainers.park()
        self._forget_asked()

    def _forget_asked(self) -> None:
        self._offers.clear()
        self._asked.clear()
        self._described.clear()

    def start_trainers(self, plan: Plan, machine: int) -> None:
        """Have this machine's trainers join the plan's generation, or start."""
        self.generation, self.number = plan.generation, machine
        (self._folder / "final.json").unlink(missing_ok=True)
        self._beside.spawn(self.trainers.run(plan, machine))

    async def _on_message(self, generation: int, rank: int, message: dict[str, Any]) -> None:
        self.trainers.hear(message["op"], generation, rank)
        if generation != self.generation:
            return
        match message["op"]:
            case "layout":
                self._described[rank] = Described(message["sections"], message["template"] or "")
                self._beside.spawn(self._prepare(generation, rank, message))
            case "resumed":
                told = {"iteration": int(message["iteration"]), **(message.get("seconds") or {})}
                own = {"generation": generation, "rank": rank}
                self._log.write(Resumed.of_fields(told | own))
                self._emit(TrainerResumed(generation, rank))
            case "lost_peer":
                self._emit(TrainerLostPeer(generation, rank, str(message["reason"])))
            case "learned":
                self._learned = str(message["learned"])
            case "held":
                self._emit(TrainerHeld(generation, rank, int(message["iteration"])))
            case "corrupt":
                await self._refused(generation, rank, int(message["iteration"]))
            case "room":
                part, meta_bytes = int(message["part"]), int(message["meta_bytes"])
                self.holding.make_room(generation, part, meta_bytes)
            case "event":
                self._log_event(generation, rank, message)
            case _:
                pass

    async def _refused(self, generation: int, rank: int, iteration: int) -> None:
        offer = self._offers.pop(rank, None)
        if offer is not None and offer.tier == Tier.STORAGE and self.number is not None:
            await self.holding.recheck_persistent(self.number, iteration)
        else:
            self.memory.mark_corrupt(rank, iteration)
        self._asked.add(rank)
        self._emit(TrainerRefused(generation, rank))

    def _log_event(self, generation: int, rank: int, message: Mapping[str, Any]) -> None:
        told = {**message["fields"], "generation": generation, "rank": rank}
        event = event_of(str(message["kind"]), told)
        if event is not None:
            self._log.write(event, int(message["time_ns"]))

    # ---- memory --------------------------------------------------------------------------------

    async def _prepare(self, generation: int, rank: int, message: dict[str, Any]) -> None:
        """Have memory for what this trainer will checkpoint, then let it load."""
        if self.number is not None and await self.holding.prepare(generation, self.number, message):
            self._asked.add(rank)
            self._answer(rank)

    async def inspect(self, effect: Inspect) -> None:
        """Tell the worker what is held here; trainers must be dead or parked."""
        self.generation, self.number = effect.generation, effect.machine
        held, persistent = await self.holding.inspect(
            effect.generation, effect.machine, thorough=effect.thorough
        )
        where = rendezvous.choose(self._listen, self._folder, effect.generation, self._ports)
        parked = tuple(self.trainers.pids)
        self._emit(Inspected(effect.generation, held, persistent, where, effect.asked, parked))

    def offer(self, effect: Offer) -> None:
        """Let a trainer load, as soon as it asks."""
        rank = effect.rank
        self._offers[rank] = effect
        if effect.tier in (Tier.STORAGE, Tier.SCRATCH):
            self._log.write(
                Retrieved(
                    generation=effect.generation,
                    machine=self.number,
                    rank=rank,
                    own=True,
                    iteration=effect.iteration,
                    source=effect.tier,
                    bytes=0,
                    seconds=0.0,
                )
            )
        self._answer(rank)

    def _answer(self, rank: int) -> None:
        offer = self._offers.get(rank)
        if offer is None or rank not in self._asked:
            return
        self._asked.discard(rank)
        message = {
            "op": "load",
            "generation": offer.generation,
            "iteration": offer.iteration,
            "tier": offer.tier,
            "tiers": list(self.spec.persistence.tiers) if offer.tier == Tier.STORAGE else None,
            "segments": {str(r): name for r, name in self.memory.segments().items()},
            "learned": self._learned,
        }
        self.link.tell(offer.generation, rank, message)
        if self._redundant == offer.generation:
            self.link.tell(offer.generation, rank, {"op": "redundant"})

    def redundant(self, generation: int) -> None:
        """Let the trainers checkpoint: every replica that belongs here is settled."""
        self._redundant = generation
        for rank in self.trainers.pids:
            self.link.tell(generation, rank, {"op": "redundant"})

    def hold(self, generation: int) -> None:
        """Have the trainers hold once their next checkpoint is complete."""
        self.trainers.hold(generation, is_current=generation == self.generation)

    def _holds(self, rank: int, iteration: int) -> bool:
        """Whether the own replica of a rank has an iteration whole."""
        return iteration in self.memory.replica(rank).offered()

    def finalise(self, generation: int) -> None:
        """Write the digests of the final state."""

        async def work() -> None:
            assert self.number is not None
            iteration, digests = await self.memory.final_digests(self.number)
            final = {"iteration": iteration, "ranks": {str(r): d for r, d in digests.items()}}
            (self._folder / "final.json").write_text(json.dumps(final), encoding="utf-8")
            self._emit(Finalised(generation, iteration))

        self._beside.spawn(work())

    def persist(self, generation: int, iteration: int) -> None:
        """Have this machine's parts of `iteration` written to persistent storage."""
        self._beside.spawn(self._persist(generation, iteration))

    async def _persist(self, generation: int, iteration: int) -> None:
        while self.number is None or not self._described.keys() >= set(
            self.spec.ranks_of(self.number)
        ):
            await asyncio.sleep(1.0)  # trainers of this generation have yet to say what they have
        await self._persister.write(
            generation,
            iteration,
            self.number,
            self.holding.fingerprint,
            self.memory.segments(),
            self._described,
        )

    def forget(self) -> None:
        """Give the checkpoint memory back."""
        self.number = None
        self.holding.forget()

    async def close(self, ends_memory: Callable[[], bool], *, unlink_control: bool) -> None:
        """End everything that runs here.

        Args:
            ends_memory: asked once all trainers have ended: whether the memory goes, too.
            unlink_control: the control block is this life's, and goes with it.
        """
        await self.stop_trainers()
        self.trainers.close()
        self.holding.close()
        await self.link.close()
        self.control.close(unlink=unlink_control)
        # Last: whoever gives the job's lock up removes its file, if nothing else of it is here.
        self.memory.close(unlink=ends_memory())

    def _failed(self, reason: str) -> None:
        self._emit(TrainerHung(self.generation, -1, f"agent: {reason}"))

    def pids(self) -> dict[str, Any]:
        """Return what `agent.json` says of this machine."""
        return {
            "pid": os.getpid(),
            "fork_server_pid": self._host.pid,
            "trainers": {str(rank): pid for rank, pid in self.trainers.pids.items()},
            "generation": self.generation,
            "machine": self.number,
            "segments": {str(r): name for r, name in self.memory.segments().items()},
            "control": self.control.name,
        }
