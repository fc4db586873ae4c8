"""A part taken out of checkpoint memory, so that training may go on while it is written slowly.

A buffer is reused two iterations later, long before storage has taken it. So it is copied at memory
speed into memory that was faulted in beforehand, and is checked against its digests on the way.
"""

from __future__ import annotations

import mmap
import time
from dataclasses import dataclass

from castor_policy.checkpoint_memory import BufferState
from castor_runtime.arena import DamagedPartError, IterationMissingError, Replica, chunk_digest

_POLL_S = 0.001
_MADV_POPULATE_WRITE = 23


@dataclass(frozen=True, slots=True)
class PartCopy:
    """A part of one iteration in private memory.

    Attributes:
        rank: whose part.
        iteration: of which iteration.
        data: as it lay in the buffer.
        meta: its metadata.
    """

    rank: int
    iteration: int
    data: memoryview
    meta: bytes


def reserve(size_bytes: int) -> memoryview:
    """Return private memory whose pages are there already: faults cost up to seconds a GiB.

    Raises:
        OSError: there is not so much memory.
        ValueError: `size_bytes` is less than 1.
    """
    if size_bytes < 1:
        raise ValueError(f"a copy needs at least 1 B, got {size_bytes}")
    mapped = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        mapped.madvise(_MADV_POPULATE_WRITE)
    except OSError:  # before Linux 5.14
        for start in range(0, size_bytes, mmap.PAGESIZE):
            mapped[start] = 0
    return memoryview(mapped)


def await_iteration(replica: Replica, iteration: int, wait_s: float) -> None:
    """Wait until the part of `iteration` is complete in checkpoint memory.

    Raises:
        IterationMissingError: it has been overwritten, or did not come within `wait_s`.
    """
    end_s = time.monotonic() + wait_s
    while True:
        complete = {
            header.iteration for header in replica.headers() if header.state is BufferState.COMPLETE
        }
        if iteration in complete:
            return
        if complete and min(complete) > iteration:
            raise IterationMissingError(
                f"{replica.name}: iteration {iteration} is gone, {sorted(complete)} are there; "
                "order one that is still to come"
            )
        if time.monotonic() >= end_s:
            raise IterationMissingError(
                f"{replica.name}: iteration {iteration} was not complete within {wait_s:g} s"
            )
        time.sleep(_POLL_S)


def copy_part(replica: Replica, iteration: int, into: memoryview) -> PartCopy:
    """Copy a complete part, and make sure that it was still the same at the end.

    Raises:
        IterationMissingError: it is not there, or was overwritten while it was copied.
        DamagedPartError: it is there, but a chunk does not match its digest.
        ValueError: `into` is too small.
    """
    try:
        snapshot = replica.snapshot(iteration)
    except DamagedPartError as error:
        if iteration in replica.offered():
            raise
        # Not damaged: its buffer was taken between the look at its header and at its digests.
        raise _overwritten(replica, iteration) from error
    size_bytes = snapshot.data.nbytes
    if into.nbytes < size_bytes:
        raise ValueError(f"a part of {size_bytes} B does not fit into {into.nbytes} B")
    damaged = []
    for index, expected in enumerate(snapshot.digests):
        start = index * snapshot.chunk_bytes
        end = min(start + snapshot.chunk_bytes, size_bytes)
        into[start:end] = snapshot.data[start:end]
        if chunk_digest(into[start:end]) != expected:
            damaged.append(index)
    if not snapshot.is_current():
        raise _overwritten(replica, iteration)
    if damaged:
        raise DamagedPartError(
            f"{replica.name}: chunks {damaged} of iteration {iteration} do not match their digests"
        )
    return PartCopy(snapshot.rank, iteration, into[:size_bytes], snapshot.meta)


def _overwritten(replica: Replica, iteration: int) -> IterationMissingError:
    return IterationMissingError(
        f"{replica.name}: iteration {iteration} was overwritten while it was copied"
    )
