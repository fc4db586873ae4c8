"""What a trainer makes for one generation, and gives up when that is over.

The process, its engine, its groups and its mappings of replicas may stay for the next one; what
runs, waits or is connected does not.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

import torch.distributed as dist

from castor_policy.chunk_schedule import Link
from castor_policy.interleaving import EAGER
from castor_runtime.arena import ControlBlock, Replica
from castor_runtime.arena.own_turn import OwnTurn
from castor_runtime.state.protocol import State
from castor_runtime.trainer.agent_link import AgentLink, TrainerSettings
from castor_runtime.trainer.agreements import Learned, agree_on_fingerprint, agree_on_learned
from castor_runtime.trainer.checkpoint_steps import Listener, Replicas, Route
from castor_runtime.trainer.idle_spans import Gate
from castor_runtime.trainer.joining import (
    NewGroup,
    OpenExchange,
    choose_device,
    choose_launches,
    choose_spans,
)
from castor_runtime.trainer.link_probe import LinkMeasurement, LinkProbe, agree_on_link
from castor_runtime.trainer.meta_room import MetaRooms
from castor_runtime.trainer.missing_replicas import MissingReplicas
from castor_runtime.trainer.replication import Replicator


class TrainerGeneration:
    """A trainer's connections, devices and threads in one generation; all ranks make it at once.

    Args:
        settings: of the trainer, in this generation.
        state: what it checkpoints.
        link: to its agent.
        control: a gloo group of all ranks.
        timeout_s: of transfers.
        make_group: makes a process group of all ranks.
        exchange_by: makes what checkpoints are exchanged by.

    Attributes:
        gate: knows when training communicates.
        exchanging: what checkpoints are exchanged by.
        device: the way by which bytes leave training's memory.
        launches: releases the rounds of a checkpoint.
        idle: watches training's collectives.
        fingerprint: of the job's checkpoints.
        replicator: makes checkpoints, once there is something to make them from; else None.

    Raises:
        ValueError: the scheme cannot be used here, or not every rank trains.
        LostRankError: the generation is over.
        StreamError: a peer cannot be reached.
    """

    def __init__(
        self,
        settings: TrainerSettings,
        state: State,
        link: AgentLink,
        control: dist.ProcessGroup,
        timeout_s: float,
        make_group: NewGroup,
        exchange_by: OpenExchange,
    ) -> None:
        self._settings: Final = settings
        self._state = state
        self._link = link
        self._control = control
        self._timeout_s = timeout_s
        self.replicator: Replicator | None = None
        self.gate = Gate()
        self.exchanging = exchange_by(
            settings,
            state.device(),
            control,
            make_group,
            timedelta(seconds=timeout_s),
            lambda: link.is_over,
        )
        self.device = choose_device(settings, state.device(), self.gate, self.exchanging)
        self.launches = choose_launches(self.device, self.gate)
        self.idle = choose_spans(state.device(), self.gate)
        self.idle.tell_passed(self.launches.passed)
        self.watches_spans = settings.traffic.scheme != EAGER
        try:
            self.fingerprint = agree_on_fingerprint(settings, state.sections, control)
        except BaseException:  # a rank was lost meanwhile: nobody else knows of the connections
            self.exchanging.end()
            self.exchanging.close()
            raise

    def learn(
        self, known: Learned | None, tell: Callable[[LinkMeasurement], None]
    ) -> Learned | None:
        """Return what all ranks know of the network, or measure now; None: no schedule needs it.

        Args:
            known: what this process knows of a generation before.
            tell: told of what is measured.
        """
        settings = self._settings
        if not self.watches_spans or not settings.holders():
            return None
        if (learned := agree_on_learned(known, self._control)) is not None:
            return learned
        alone = settings.traffic.scheme in ("unpipelined", "naive")
        measured = LinkProbe(
            post=self.exchanging.post,
            control=self._control,
            device=self.exchanging.device,
            holders=settings.holders(),
            sources=[rank for rank, _ in settings.sources()],
            in_flight=1 if alone else settings.traffic.sub_buffers,
        ).measure()
        tell(measured)
        return Learned(measured.agreed, self._agree_on_copy_link())

    def replicate(
        self,
        order: Mapping[str, Any],
        open_replica: Callable[[str], Replica],
        learned: Learned | None,
        ask_for_room: Callable[[int, int], None],
        asked_to_hold: Callable[[], bool],
        block: ControlBlock,
        listener: Listener,
    ) -> None:
        """Begin to make checkpoints.

        Args:
            order: what was loaded.
            open_replica: opens a replica by its segment's name.
            learned: of the network.
            ask_for_room: asks the agent for more room in a part.
            asked_to_hold: says whether this machine's agent asks all ranks to hold.
            block: counters of the machine's trainers.
            listener: told of each checkpoint.
        """
        settings, segments = self._settings, order["segments"]
        own = open_replica(segments[str(settings.rank)])
        remote = {rank: open_replica(segments[str(rank)]) for rank, _ in settings.sources()}
        replicas = [own, *remote.values()]
        rooms = MetaRooms(replicas, ask_for_room, self._timeout_s, lambda: self._link.is_over)
        in_memory = order["tier"] in ("own_memory", "peer")
        loaded = int(order["iteration"]) if in_memory else None
        self.replicator = Replicator(
            settings,
            self._state.sections,
            Replicas(own, remote, rooms),
            Route(
                self.device,
                self._control,
                self.gate,
                self.launches,
                None if learned is None else learned.link,
                None if learned is None else learned.copy_link,
                (self.idle.transfer_began, self.idle.transfer_ended),
                () if learned is None else learned.spans_ns,
            ),
            agreed=loaded,
            missing=MissingReplicas(settings.recovery.redundancy, loaded, self._link),
            asked_to_hold=asked_to_hold,
            turn=OwnTurn(block.ranks, settings.local_rank),
            listener=listener,
        )

    def learned(self, known: Learned | None) -> Learned | None:
        """Return what is known of the network now, for the next generation."""
        if known is None or self.replicator is None:
            return known
        return replace(known, spans_ns=self.replicator.spans_ns)

    def watch_collectives(self) -> None:
        """Watch DeepSpeed's collectives from now on, where spans are scheduled by them."""
        comm = sys.modules.get("deepspeed.comm.comm")
        if self.watches_spans and comm is not None and comm.cdb is not None:
            self.idle.install(comm.cdb)
        self.idle.end_iteration()

    def let_all_go(self) -> None:
        """Let what is left of the checkpoint go: training asks for no more traffic before it."""
        self.idle.open_gate()
        self.launches.let_all_go()

    def waiting(self, wait: Callable[[], None]) -> None:
        """Wait for the checkpoint; that is no part of the iteration's timeline."""
        began_ns = time.monotonic_ns()
        wait()
        self.idle.waited(time.monotonic_ns() - began_ns)

    def end(self) -> None:
        """Have whoever waits for a peer fail; from any thread."""
        self.exchanging.end()

    def give_up(self) -> None:
        """End all that runs, whatever it is at; then nothing writes replicas or reads state."""
        self.end()
        if self.replicator is not None:
            self.replicator.abandon()
        self.exchanging.close()
        self.idle.remove()

    def finish(self) -> None:
        """End all that runs once it is idle."""
        if self.replicator is not None:
            self.replicator.close()
        self.idle.remove()

    def _agree_on_copy_link(self) -> Link | None:
        """Return the hop to CPU memory, the slowest of all ranks; None if there is none."""
        copy_link = self.device.copy_link
        return None if copy_link is None else agree_on_link(copy_link, self._control)
