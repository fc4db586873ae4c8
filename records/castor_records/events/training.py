"""What trainers say of training and of its checkpoints; real runs only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from castor_records.events.event import Event
from castor_records.events.fields import (
    BitsPerSecond,
    Bytes,
    Count,
    Nanoseconds,
    Number,
    Seconds,
    Share,
)

COLLECTIVE_COLUMNS: Final = ("op_bytes", "issued_ns", "waited_ns", "resumed_ns", "ended_ns")
"""Of a profile: a list each, one whole number for each of its `ops`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationEnded(Event):
    """An iteration has ended on a rank.

    Attributes:
        generation: of the trainer.
        rank: of the trainer.
        iteration: which one.
        loss: as the script gave it; null: it gave none.
        seconds: since the iteration before ended, or since loading.
        idle_s: of them, neither a collective nor checkpoint traffic was under way on this rank; of
            the iteration before, where a GPU trains.
        train_busy_s: of them, a collective was under way; likewise.
        own_s: of them, this rank neither waited in a collective nor for a checkpoint, nor was it
            in a busy section.
    """

    kind: ClassVar[str] = "iteration_ended"
    generation: Count
    rank: Count
    iteration: Count
    loss: Number | None = None
    seconds: Seconds | None = None
    idle_s: Seconds | None = None
    train_busy_s: Seconds | None = None
    own_s: Seconds | None = None

    def check(self) -> None:
        """Check that it took time."""
        if self.seconds == 0:
            raise ValueError(
                "iteration_ended.seconds: expected more than 0: an iteration takes time"
            )

    def nulls(self) -> tuple[str, ...]:
        """Say that there is no loss."""
        return ("loss",)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointCompleted(Event):
    """A checkpoint is whole on all ranks.

    Attributes:
        generation: of the trainer.
        rank: of the trainer.
        iteration: which one.
        seconds: from its hand-over to the agreement that it is whole.
        blocked_s: in which training waited for it.
        sent_bytes: to other machines, by this rank.
        scheme: when its chunks were sent.
        spans_ns: the idle spans that they were sent in.
        captured_s: from the hand-over until the own copy was whole.
        network_s: in which chunks were on their way.
        sent_s: from the hand-over until the last chunk lay in CPU memory.
        commit_s: of records and agreement.
    """

    kind: ClassVar[str] = "checkpoint_completed"
    generation: Count
    rank: Count
    iteration: Count
    seconds: Seconds | None = None
    blocked_s: Seconds | None = None
    sent_bytes: Bytes | None = None
    scheme: str | None = None
    spans_ns: tuple[Nanoseconds, ...] | None = None
    captured_s: Seconds | None = None
    network_s: Seconds | None = None
    sent_s: Seconds | None = None
    commit_s: Seconds | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointLeftOut(Event):
    """There is no checkpoint of an iteration: some rank's state was changed while it was copied.

    Attributes:
        generation: of the trainer.
        rank: of the trainer.
        iteration: which one.
        changed: the tensors that were changed, if this rank's were.
    """

    kind: ClassVar[str] = "checkpoint_left_out"
    generation: Count
    rank: Count
    iteration: Count
    changed: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpansProfiled(Event):
    """Where the network was idle: medians over some alike iterations.

    Times count from the iteration's start, which is the end of `engine.step` before it, and leave
    waits for checkpoints out. Collectives stand in the order of their issue. With scheme `none` it
    comes after the first profile and once more at the end of training; else each time that a
    profile is handed over.

    Attributes:
        generation: of the trainer.
        rank: of the trainer.
        iteration: the last one of those.
        iterations: how many they are.
        spans_ns: the idle spans: k lies between the end of all collectives before k and the issue
            of k (0 where they overlap); the last one ends with `before_update_ns`.
        ops: name of each collective.
        op_bytes: the larger of what goes in and what comes out of each, on this rank.
        issued_ns: when each began to be under way.
        waited_ns: when the main thread began to wait for each: `issued_ns` for a blocking one, -1
            if it is never waited for.
        resumed_ns: when the main thread went on: `ended_ns` for a blocking one, -1 likewise.
        ended_ns: when each was no longer under way.
        before_update_ns: when the state may first change.
        iteration_ns: when `engine.step` has ended.
        update_ns: from the one to the other.
        deviation: standard deviation of the iterations' total idle time over its mean.
    """

    kind: ClassVar[str] = "spans_profiled"
    generation: Count
    rank: Count
    iteration: Count
    iterations: Count | None = None
    spans_ns: tuple[Nanoseconds, ...] | None = None
    ops: tuple[str, ...]
    op_bytes: tuple[Bytes, ...]
    issued_ns: tuple[Nanoseconds, ...]
    waited_ns: tuple[Nanoseconds, ...]
    resumed_ns: tuple[Nanoseconds, ...]
    ended_ns: tuple[Nanoseconds, ...]
    before_update_ns: Nanoseconds
    iteration_ns: Nanoseconds | None = None
    update_ns: Nanoseconds | None = None
    deviation: Share | None = None

    def check(self) -> None:
        """Check that every collective has all its figures."""
        for name in COLLECTIVE_COLUMNS:
            found = len(getattr(self, name))
            if found != len(self.ops):
                raise ValueError(
                    f"spans_profiled.{name}: expected {len(self.ops)} numbers, as there are ops, "
                    f"not {found}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkMeasured(Event):
    """How fast chunks travel to the machine that holds them.

    Attributes:
        generation: of the trainer.
        rank: of the trainer.
        alpha_ns: what a chunk takes whatever its size, as fitted.
        bandwidth_bps: as fitted.
        sizes_bytes: of the chunks that were sent.
        times_ns: how long each size took.
        agreed_alpha_ns: the slowest of all ranks.
        agreed_bandwidth_bps: the slowest of all ranks.
    """

    kind: ClassVar[str] = "link_measured"
    generation: Count
    rank: Count
    alpha_ns: Nanoseconds | None = None
    bandwidth_bps: BitsPerSecond | None = None
    sizes_bytes: tuple[Bytes, ...] | None = None
    times_ns: tuple[Nanoseconds, ...] | None = None
    agreed_alpha_ns: Nanoseconds | None = None
    agreed_bandwidth_bps: BitsPerSecond | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled(Event):
    """From an iteration on chunks travel by a schedule.

    Attributes:
        generation: of the trainer.
        rank: of the trainer.
        iteration: the first that it holds for.
        reason: "start", "drift", or "kept": the spans of the generation before hold on.
        scheme: which kind of schedule.
        spans_ns: the idle spans that it was made for: the mean over all ranks.
        chunk_bytes: size of each chunk of this rank, in the order of sending.
        chunk_spans: in which span each is sent.
        chunk_replicas: which remote copy each belongs to.
        shortest_span_ns: shorter spans count as 0.
        spill_ns: what does not fit into the spans.
        update_delay_ns: how long the update waits for chunks.
        alpha_ns: of the hop to the other machine; 0: there is no such hop.
        bandwidth_bps: of the same.
        copy_alpha_ns: of the hop to CPU memory; 0: there is no such hop.
        copy_bandwidth_bps: of the same.
        buffer_bytes: memory for chunks under way.
        sub_buffers: how many it is divided in.
        mu: share of a span that is used.
        shard_bytes: what travels of this rank's state.
        remote_copies: how often.
    """

    kind: ClassVar[str] = "scheduled"
    generation: Count
    rank: Count
    iteration: Count
    reason: str | None = None
    scheme: str | None = None
    spans_ns: tuple[Nanoseconds, ...] | None = None
    chunk_bytes: tuple[Bytes, ...] | None = None
    chunk_spans: tuple[Count, ...] | None = None
    chunk_replicas: tuple[Count, ...] | None = None
    shortest_span_ns: Nanoseconds | None = None
    spill_ns: Nanoseconds | None = None
    update_delay_ns: Nanoseconds | None = None
    alpha_ns: Nanoseconds | None = None
    bandwidth_bps: BitsPerSecond | None = None
    copy_alpha_ns: Nanoseconds | None = None
    copy_bandwidth_bps: BitsPerSecond | None = None
    buffer_bytes: Bytes | None = None
    sub_buffers: Count | None = None
    mu: Share | None = None
    shard_bytes: Bytes | None = None
    remote_copies: Count | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy(Event):
    """A busy section of the script has ended.

    Attributes:
        generation: of the trainer.
        rank: of the trainer.
        iteration: the newest that had ended.
        what: as the script names it.
        seconds: how long it took.
    """

    kind: ClassVar[str] = "busy"
    generation: Count
    rank: Count
    iteration: Count
    what: str
    seconds: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow(Event):
    """All others wait for a rank, iteration after iteration; told when that begins, and ends.

    A generation begins without a slow rank, and none is told to be over when it ends.

    Attributes:
        generation: of the trainer.
        rank: that is waited for; it tells of itself.
        machine: its.
        iteration: the newest that had ended.
        over: it is slow no more; the figures are then of all the time in which it was.
        own_s: what it takes of an iteration itself, in the mean.
        others_s: the median of what the others do.
        costs_s: the difference, which every iteration of the job takes longer.
        share: of an iteration, that is that.
        iterations: over which it was slow so far.
        lost_s: what they have taken longer, all of them together.
    """

    kind: ClassVar[str] = "slow"
    generation: Count
    rank: Count
    machine: Count
    iteration: Count
    over: bool
    own_s: Seconds
    others_s: Seconds
    costs_s: Seconds
    share: Share
    iterations: Count
    lost_s: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class NotFinite(Event):
    """A rank's loss is infinite or no number, and those of most others are: told once.

    Until all are finite again, or the generation ends.

    Attributes:
        generation: of the trainer.
        rank: whose loss it is; it tells of itself.
        machine: its.
        iteration: of that loss.
    """

    kind: ClassVar[str] = "not_finite"
    generation: Count
    rank: Count
    machine: Count
    iteration: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned(Event):
    """Something is in no checkpoint, or left one out; result.json has each once, with its ranks.

    Attributes:
        generation: of the trainer.
        rank: of the trainer.
        message: what, and what to do.
    """

    kind: ClassVar[str] = "warning"
    generation: Count
    rank: Count
    message: str
