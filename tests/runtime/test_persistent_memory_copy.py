"""A part is taken out of checkpoint memory whole, or not at all, while its trainer goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from castor_runtime.arena import (
    DamagedPartError,
    IterationMissingError,
    PartLayout,
    Replica,
    SegmentOwner,
)
from castor_runtime.persistent.memory_copy import PartCopy, await_iteration, copy_part, reserve

PART = PartLayout(rank=3, data_bytes=1_000_003, meta_bytes=100, chunk_bytes=1 << 16)


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    with Replica.create(
        "part", SegmentOwner("job", "0" * 16, "node-0", b"f" * 16), PART, folder=tmp_path
    ) as r:
        yield r


def content(iteration: int) -> bytes:
    return np.random.default_rng(iteration).bytes(PART.data_bytes)


def commit(replica: Replica, iteration: int) -> None:
    writing = replica.begin(iteration, 1, iteration - 1)
    writing.data[:] = content(iteration)
    writing.commit(f"meta {iteration}".encode())


def test_a_copy_outlives_its_buffer(replica: Replica) -> None:
    for iteration in (1, 2):
        commit(replica, iteration)
    copy = copy_part(replica, 1, reserve(PART.data_bytes + 5))
    for iteration in (3, 4):
        commit(replica, iteration)
    assert (copy.rank, copy.iteration, copy.meta) == (3, 1, b"meta 1")
    assert copy.data == content(1)


def test_a_flipped_byte_is_found(replica: Replica) -> None:
    commit(replica, 1)
    replica.snapshot(1).data[5 * PART.chunk_bytes + 7] ^= 1
    with pytest.raises(DamagedPartError, match=r"part: chunks \[5\] of iteration 1"):
        copy_part(replica, 1, reserve(PART.data_bytes))


def test_an_iteration_that_is_overwritten_is_never_half_copied(replica: Replica) -> None:
    """A trainer that writes without a pause: every copy is whole, or refused as overwritten."""
    commit(replica, 1)
    last = 60
    expected = {iteration: content(iteration) for iteration in range(1, last + 1)}
    child = os.fork()
    if child == 0:
        for iteration in range(2, last * 20):
            writing = replica.begin(iteration, 1, iteration - 1)
            writing.data[:] = expected[iteration % last + 1]
            writing.commit(f"meta {iteration % last + 1}".encode())
        os._exit(0)
    copies = 0
    into = reserve(PART.data_bytes)
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        oldest = min(replica.offered(), default=0)  # the trainer's next buffer
        try:
            copy = copy_part(replica, oldest, into)
        except IterationMissingError as error:
            if isinstance(error, DamagedPartError):
                raise  # it says that nobody overwrote it
            continue
        assert copy.data == expected[int(copy.meta.split()[1])]
        copies += 1
    assert copies > 0


def test_waits_for_an_iteration_to_come_and_knows_one_that_went(replica: Replica) -> None:
    commit(replica, 1)
    child = os.fork()
    if child == 0:
        for iteration in (2, 3):
            commit(replica, iteration)
        os._exit(0)
    await_iteration(replica, 3, 60.0)
    os.waitpid(child, 0)
    copy: PartCopy = copy_part(replica, 3, reserve(PART.data_bytes))
    assert copy.data == content(3)
    with pytest.raises(IterationMissingError, match=r"iteration 1 is gone, \[2, 3\] are there"):
        await_iteration(replica, 1, 60.0)
    with pytest.raises(IterationMissingError, match="not complete within 0 s"):
        await_iteration(replica, 4, 0.0)


def test_memory_is_asked_for_in_earnest(replica: Replica) -> None:
    commit(replica, 1)
    with pytest.raises(ValueError, match="does not fit into 10 B"):
        copy_part(replica, 1, reserve(10))
    with pytest.raises(ValueError, match="at least 1 B"):
        reserve(0)
