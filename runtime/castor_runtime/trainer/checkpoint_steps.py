"""What the steps of a checkpoint hand on: captured, scheduled, completed."""

from __future__ import annotations

from dataclasses import dataclass

from castor_policy.chunk_schedule import Schedule
from castor_records.events import training
from castor_runtime.trainer.moment import Moment
from castor_runtime.trainer.span_profile import SpanProfile
from castor_runtime.trainer.traffic import Traffic


@dataclass(frozen=True, slots=True)
class Capture:
    """What the main thread hands over at the end of an iteration.

    Attributes:
        iteration: which.
        meta: encoded.
        moment: the live state at the end of that iteration.
        profile: what the next checkpoints are scheduled by; None: as the one before.
        reason: why it is handed over: "start" or "drift".
        drifted: this rank's idle spans no longer fit the schedule.
    """

    iteration: int
    meta: bytes
    moment: Moment
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
