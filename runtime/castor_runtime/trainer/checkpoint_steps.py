"""What the steps of a checkpoint are given and hand on: captured, scheduled, completed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch.distributed as dist

from castor_policy.chunk_schedule import Link, Schedule
from castor_records.events import training
from castor_runtime.arena import Replica
from castor_runtime.trainer.device import Device
from castor_runtime.trainer.idle_spans import Gate
from castor_runtime.trainer.launches import Launches
from castor_runtime.trainer.losses import Loss
from castor_runtime.trainer.meta_room import MetaRooms
from castor_runtime.trainer.moment import Moment
from castor_runtime.trainer.own_time import Pace
from castor_runtime.trainer.rank_words import RankWord
from castor_runtime.trainer.span_profile import SpanProfile
from castor_runtime.trainer.traffic import Traffic


@dataclass(frozen=True, slots=True)
class Replicas:
    """Where checkpoints lie on this machine.

    Attributes:
        own: the replica of this rank's part.
        remote: those of the parts in `TrainerSettings.sources()`, by rank.
        rooms: has room made for metadata in any of them.
    """

    own: Replica
    remote: Mapping[int, Replica]
    rooms: MetaRooms


@dataclass(frozen=True, slots=True)
class Route:
    """How checkpoints travel.

    Attributes:
        device: how to copy and exchange.
        control: a gloo group of all ranks that nothing else uses.
        gate: knows when training communicates.
        launches: releases pieces.
        link: measured, the same on all ranks; None if nothing travels, or by no schedule.
        copy_link: from the buffer for received pieces to CPU memory, likewise; None: there is none.
        transfers: called when pieces begin to be under way, and when they have arrived.
        spans_ns: that they travel in from the first one on, which these ranks, or those before
            them, have agreed on; empty: they are still to be measured.
    """

    device: Device
    control: dist.ProcessGroup
    gate: Gate
    launches: Launches
    link: Link | None
    copy_link: Link | None
    transfers: tuple[Callable[[], None], Callable[[], None]]
    spans_ns: tuple[int, ...] = ()


class Listener(Protocol):
    """Is told of checkpoints, in the thread that makes them."""

    def scheduled(self, scheduled: Scheduled, /) -> None:
        """Hear that a schedule was made."""
        ...

    def completed(self, completed: Completed, /) -> None:
        """Hear that an iteration is complete on every rank."""
        ...

    def left_out(self, iteration: int, torn: tuple[str, ...], /) -> None:
        """Hear of an iteration that was left out, and which sections of this rank had changed."""
        ...


@dataclass(frozen=True, slots=True)
class Capture:
    """What the main thread hands over at the end of an iteration.

    Attributes:
        iteration: which.
        meta: encoded.
        moment: the live state at the end of that iteration.
        profile: what the next checkpoints are scheduled by; None: as the one before.
        reason: why it is handed over: "start", "drift" or "kept".
        drifted: this rank's idle spans no longer fit the schedule.
        pace: of the iterations since the one before that was handed over.
        losses: theirs, each behind its iteration; known once the moment is captured.
    """

    iteration: int
    meta: bytes
    moment: Moment
    pace: Pace
    losses: tuple[tuple[int, Loss], ...] = ()
    profile: SpanProfile | None = None
    reason: str = ""
    drifted: bool = False


@dataclass(frozen=True, slots=True)
class Completed:
    """A checkpoint that is complete on every rank.

    Attributes:
        iteration: of it.
        seconds: from its hand-over to the agreement.
        sent_bytes: to other machines.
        traffic: how it travelled.
        captured_s: from its hand-over until the own copy was whole.
        network_s: in which a piece was under way.
        sent_s: from its hand-over until the last piece lay in CPU memory.
        commit_s: of records and agreement.
        drifted: some rank's idle spans no longer fit the schedule; the same on all ranks.
        iterations: that ended since the one before.
        ranks: what each rank says of itself in those; the same on all ranks.
    """

    iteration: int
    seconds: float
    sent_bytes: int
    traffic: Traffic
    captured_s: float
    network_s: float
    sent_s: float
    commit_s: float
    drifted: bool
    iterations: int
    ranks: tuple[RankWord, ...]


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A schedule that all ranks follow from now on.

    Attributes:
        iteration: the first checkpoint that travels so.
        reason: as in `Capture`.
        traffic: what it was made from.
        schedule: of this rank's part.
        part_bytes: its size.
    """

    iteration: int
    reason: str
    traffic: Traffic
    schedule: Schedule
    part_bytes: int

    def to_event(self, *, generation: int, rank: int) -> training.Scheduled:
        """Return the event that tells of it."""
        traffic, schedule = self.traffic, self.schedule
        rows = [(0, schedule.upfront), *enumerate(span.chunks for span in schedule.spans)]
        chunks = [(span, chunk) for span, row in rows for chunk in row]
        link, copy_link = traffic.link, traffic.copy_link
        return training.Scheduled(
            generation=generation,
            rank=rank,
            iteration=self.iteration,
            reason=self.reason,
            scheme=traffic.scheme,
            spans_ns=tuple(traffic.spans_ns),
            chunk_bytes=tuple(chunk.size_bytes for _, chunk in chunks),
            chunk_spans=tuple(span for span, _ in chunks),
            chunk_replicas=tuple(chunk.replica for _, chunk in chunks),
            shortest_span_ns=traffic.shortest_span_ns,
            spill_ns=schedule.spill_ns,
            update_delay_ns=schedule.update_delay_ns,
            alpha_ns=0 if link is None else link.alpha_ns,
            bandwidth_bps=0 if link is None else link.bandwidth_bps,
            copy_alpha_ns=0 if copy_link is None else copy_link.alpha_ns,
            copy_bandwidth_bps=0 if copy_link is None else copy_link.bandwidth_bps,
            buffer_bytes=traffic.reserved_bytes,
            sub_buffers=traffic.sub_buffers,
            mu=float(traffic.mu),
            shard_bytes=self.part_bytes,
            remote_copies=traffic.remote_copies,
        )
