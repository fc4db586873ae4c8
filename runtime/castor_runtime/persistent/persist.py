"""One machine's share of a persistent checkpoint, from order to published.

Runs in a process of its own that has torch (forked from the fork server): training neither waits
for it nor dies with it.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from castor_runtime.arena import IterationMissingError, Replica
from castor_runtime.pacing import storage_pacer
from castor_runtime.persistent.address import tier_at
from castor_runtime.persistent.deepspeed_format import write_converters, write_rank_files
from castor_runtime.persistent.manifest import Attempt
from castor_runtime.persistent.memory_copy import PartCopy, await_iteration, copy_part, reserve
from castor_runtime.persistent.retention import drop_cut_off, publish_and_prune, under_way
from castor_runtime.persistent.storage import published, start_attempt

NICENESS = 5
"""Of the threads that write: where processors are short, training goes first."""

_SENDER = "fsspecIO"
"""fsspec's name of its thread."""


@dataclass(frozen=True, slots=True)
class PartOrder:
    """One rank's part.

    Attributes:
        rank: whose.
        segment: the name of its replica in this machine's checkpoint memory.
        template: the file that the rank's trainer wrote with `write_template`.
        sections: what lies where in the part, as the trainer said in "layout".
    """

    rank: int
    segment: str
    template: str
    sections: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class PersistOrder:
    """What a machine is to write; the same on all machines but for the parts.

    Attributes:
        tier: where it is written, as people write it (`address`).
        attempt: the iteration, and in which generation it is written. Name an iteration that is
            still to come: memory keeps each one for two iterations only.
        parts: of the machine's own ranks.
        wait_s: how long to wait for the iteration.
        keep: checkpoints that stay.
        bytes_per_s: bandwidth for all parts together; None for what there is.
        others_s: how long to wait for the other machines' shares once the own one is written.
    """

    tier: str
    attempt: Attempt
    parts: tuple[PartOrder, ...]
    wait_s: float
    keep: int
    bytes_per_s: float | None = None
    others_s: float = 600.0

    def to_json(self) -> str:
        """Return the order as one line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            TypeError: it is something else.
            ValueError: it is something else.
        """
        record = json.loads(text)
        attempt = Attempt(**record.pop("attempt"))
        parts = tuple(PartOrder(**part) for part in record.pop("parts"))
        return cls(attempt=attempt, parts=parts, **record)


@dataclass(frozen=True, slots=True)
class PersistResult:
    """What became of an order.

    Attributes:
        published: the checkpoint counts. If not, call `publish_and_prune` every few seconds: other
            machines are still writing.
        left_out: the tier is still busy with an earlier one, so all machines leave this one out.
        written_bytes: written here.
        waited_s: until the iteration was complete in memory.
        copied_s: to copy all parts out of checkpoint memory.
        written_s: to write them.
    """

    published: bool
    written_bytes: int
    waited_s: float
    copied_s: float
    written_s: float
    left_out: bool = False


def persist(order: PersistOrder) -> PersistResult:
    """Carry out an order. Doing it again after a crash takes up where it ended.

    Raises:
        IterationMissingError: the iteration did not come, or was gone before it was copied.
        DamagedPartError: checkpoint memory is damaged.
        DamagedCheckpointError: the checkpoint's name is taken by a damaged one.
        ForeignStorageError: the folder is another job's.
        OSError: the storage refuses, or the memory for the copy is not there.
        ValueError: template, sections and memory do not belong together.
    """
    tier, attempt = tier_at(order.tier), order.attempt
    try:
        # First: memory keeps an iteration no longer than two take, and storage may be slow.
        copied = _copied(order)
    except IterationMissingError:
        if published(tier, attempt) is None:
            raise
        return PersistResult(True, 0, 0.0, 0.0, 0.0)
    _step_back()
    began_s = time.monotonic()
    drop_cut_off(tier, attempt.job, attempt.generation)
    if under_way(tier, attempt):
        return PersistResult(False, 0, copied.waited_s, copied.took_s, 0.0, left_out=True)
    staging = start_attempt(tier, attempt)
    if staging is None:
        return PersistResult(True, 0, copied.waited_s, copied.took_s, 0.0)
    written_bytes = 0
    pacer = storage_pacer(bytes_per_s=order.bytes_per_s)
    for part, copy in zip(order.parts, copied.parts, strict=True):
        receipt = write_rank_files(
            Path(part.template),
            copy.data,
            part.sections,
            copy.meta,
            tier,
            staging,
            attempt,
            part.rank,
            pacer=pacer,
        )
        written_bytes += sum(record.size_bytes for record in receipt.files)
    if any(part.rank == 0 for part in order.parts):
        write_converters(tier)
    is_published = publish_and_prune(tier, attempt, keep=order.keep)
    return PersistResult(
        published=is_published,
        written_bytes=written_bytes,
        waited_s=copied.waited_s,
        copied_s=copied.took_s,
        written_s=time.monotonic() - began_s,
    )


@dataclass(frozen=True, slots=True)
class _Copied:
    """The parts, how long they were waited for, and how long copying them took."""

    parts: list[PartCopy]
    waited_s: float
    took_s: float


def _copied(order: PersistOrder) -> _Copied:
    iteration = order.attempt.iteration
    with ExitStack() as stack:
        fingerprint = bytes.fromhex(order.attempt.fingerprint)
        replicas = [
            stack.enter_context(Replica.open(part.segment, fingerprint=fingerprint))
            for part in order.parts
        ]
        memory = [reserve(replica.data_bytes) for replica in replicas]
        began_s = time.monotonic()
        for replica in replicas:
            await_iteration(replica, iteration, order.wait_s)
        complete_s = time.monotonic()
        parts = [
            copy_part(replica, iteration, into)
            for replica, into in zip(replicas, memory, strict=True)
        ]
        return _Copied(parts, complete_s - began_s, time.monotonic() - complete_s)


def _step_back() -> None:
    """Let training go first: this thread, and the one in which fsspec sends what it is given."""
    # Linux gives each thread a priority of its own; the tests run trainers beside this one.
    for thread in threading.enumerate():
        if thread.native_id and (thread is threading.current_thread() or thread.name == _SENDER):
            os.setpriority(os.PRIO_PROCESS, thread.native_id, NICENESS)
