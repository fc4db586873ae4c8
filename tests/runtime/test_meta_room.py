"""Metadata outgrow their room while training goes on: the segment grows, and nothing is lost."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from castor_configs.errors import InputError
from castor_runtime.arena import Arena, PartLayout, Replica, SegmentOwner, Snapshot
from castor_runtime.arena.layout import HEADER_BYTES, room_span
from castor_runtime.trainer.meta_room import MetaRooms, RoomError
from castor_runtime.transport import JobSecret, PeerClient, PeerRefusedError, PeerServer

RUN = "0123456789abcdef"
FINGERPRINT = bytes(range(16))
PART = PartLayout(rank=3, data_bytes=1000, meta_bytes=64, chunk_bytes=96)


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="castor-test-", dir="/dev/shm"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def arena(folder: Path) -> Iterator[Arena]:
    with Arena("job", RUN, "node-0", FINGERPRINT, folder=folder) as made:
        made.add_parts([PART])
        yield made


def meta(iteration: int, size_bytes: int) -> bytes:
    return bytes([iteration]) * size_bytes


def write(replica: Replica, iteration: int, size_bytes: int) -> None:
    writing = replica.begin(iteration, 0, iteration - 1)
    writing.data[:] = bytes([iteration]) * PART.data_bytes
    writing.make_room(size_bytes)
    writing.commit(meta(iteration, size_bytes))


def test_what_was_written_before_and_after_growing_is_whole(arena: Arena, folder: Path) -> None:
    replica = arena.replica(3)
    reader = Replica.open(replica.name, folder=folder)
    for iteration, size_bytes in enumerate((10, 64, 65, 9000, 40_000, 3, 1_000_000, 12), 1):
        write(replica, iteration, size_bytes)
        for seen in (replica, reader):
            assert seen.verify(iteration) == []
            assert seen.snapshot(iteration).meta == meta(iteration, size_bytes)
            assert seen.offered() == {iteration, iteration - 1} - {0}
            if iteration > 1:
                assert seen.verify(iteration - 1) == []
    reader.close()
    assert arena.memory_bytes == (folder / replica.name).stat().st_size


def test_room_is_made_ahead_of_need(arena: Arena) -> None:
    replica = arena.replica(3)
    arena.make_room(3, 32)
    assert replica.meta_bytes == 64, "half full is early enough"
    arena.make_room(3, 33)
    assert replica.meta_bytes == 4096
    arena.make_room(3, 2000)
    assert replica.meta_bytes == 4096
    arena.make_room(3, 3000)
    assert replica.meta_bytes == 12_288


def test_an_agents_next_life_finds_what_grew(arena: Arena, folder: Path) -> None:
    write(arena.replica(3), 1, 50_000)
    write(arena.replica(3), 2, 300_000)
    arena.close(unlink=False)
    with Arena("job", RUN, "node-0", FINGERPRINT, folder=folder) as again:
        # Another hint is no other model.
        other = PartLayout(PART.rank, PART.data_bytes, 4096, PART.chunk_bytes)
        assert again.add_parts([other]) == {3}
        assert again.replica(3).meta_bytes >= 300_000
        assert again.replica(3).snapshot(1).meta == meta(1, 50_000)
        assert again.replica(3).verify(2) == []
        spare = PartLayout(7, PART.data_bytes, 99, PART.chunk_bytes)
        again.reassign(3, spare)
        write(again.replica(7), 1, 250_000)
        assert again.replica(7).verify(1) == []


def test_killed_while_it_grew_nothing_is_lost(arena: Arena, folder: Path) -> None:
    replica = arena.replica(3)
    write(replica, 1, 50)
    write(replica, 2, 5000)
    os.truncate(folder / replica.name, replica.memory_bytes + 12_345)  # taken, and not yet noted
    replica._view[room_span()] = b"\xff" * 24  # half noted
    assert replica.meta_bytes == 64
    assert replica.verify(2) == []
    write(replica, 3, 70_000)
    assert replica.verify(3) == replica.verify(2) == []
    assert replica.offered() == {2, 3}


def test_damage_to_what_grew_is_found(arena: Arena, folder: Path) -> None:
    replica = arena.replica(3)
    write(replica, 1, 5000)
    with (folder / replica.name).open("r+b") as file:
        file.seek(PART.segment_bytes + 17)
        file.write(b"\x07")
    assert replica.verify(1) == list(range(PART.chunks))
    write(replica, 2, 5000)
    os.truncate(folder / replica.name, PART.segment_bytes)
    assert replica.verify(2) == list(range(PART.chunks))
    os.truncate(folder / replica.name, HEADER_BYTES)
    with Arena("job", RUN, "node-0", FINGERPRINT, folder=folder) as again:
        assert again.missing([PART]) == [PART]


def test_growth_honours_the_limit_and_is_refused_by_name(folder: Path) -> None:
    limit_bytes = PART.segment_bytes + 80_000
    with Arena("job", RUN, "node-0", FINGERPRINT, folder=folder) as arena:
        arena.add_parts([PART], limit_bytes=limit_bytes)
        write(arena.replica(3), 1, 15_000)  # four times that would be too much
        assert arena.replica(3).meta_bytes == 32_768
        arena.make_room(3, 17_000)  # wanted ahead of need only
        with pytest.raises(InputError, match=r"state of rank 3 that grew[\s\S]*left of the limit"):
            write(arena.replica(3), 2, 50_000)
        assert arena.memory_bytes <= limit_bytes
        assert arena.replica(3).verify(1) == []


def test_a_trainer_asks_once_and_says_what_it_misses(arena: Arena, folder: Path) -> None:
    trainer = Replica.open(arena.replica(3).name, folder=folder)
    asked: list[tuple[int, int]] = []
    rooms = MetaRooms([trainer], lambda *wanted: asked.append(wanted), timeout_s=0.01)
    for size_bytes in (20, 40, 41, 42):
        rooms.note(trainer, size_bytes)
    assert asked == [(3, 40)]
    with pytest.raises(
        RoomError, match="5000 bytes of small and user states, there is room for 64"
    ):
        trainer.make_room(5000)
    assert asked == [(3, 40), (3, 5000)]
    arena.make_room(*asked[-1])
    trainer.make_room(5000)
    trainer.close()


@pytest.mark.parametrize("limit_bytes", [None, PART.segment_bytes + 4096])
def test_a_peer_is_fetched_from_whose_metadata_have_grown(
    arena: Arena, folder: Path, limit_bytes: int | None
) -> None:
    secret = JobSecret(b"the secret of a test job, 32 bytes"[:32])
    source = Replica.create(
        "source", SegmentOwner("job", RUN, "peer", FINGERPRINT), PART, folder=folder
    )
    source.grow(60_000)
    write(source, 1, 60_000)
    arena.add_parts([PART], limit_bytes=limit_bytes)

    class Holder:
        def open(self, rank: int, iteration: int) -> Snapshot:
            assert rank == PART.rank
            return source.snapshot(iteration)

    async def fetch() -> None:
        async with PeerServer(
            "127.0.0.1", credentials=secret, run=RUN, source=Holder(), status=dict
        ) as server:
            writing = arena.replica(3).begin(1, 2, None)
            await PeerClient(secret, RUN).fetch([server.address], 3, 1, FINGERPRINT, writing)

    if limit_bytes is None:
        asyncio.run(fetch())
        assert arena.replica(3).snapshot(1).meta == meta(1, 60_000)
    else:
        with pytest.raises(PeerRefusedError, match=r"60000 bytes of metadata: .*does not fit"):
            asyncio.run(fetch())
        assert arena.replica(3).offered() == set()
    source.close()
