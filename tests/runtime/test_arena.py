"""Checkpoint memory in real shared memory: what is committed is read, what is damaged is found."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from castor_policy.checkpoint_memory import BufferHeader, BufferState
from castor_runtime.arena import (
    Arena,
    DamagedPartError,
    ForeignCheckpointError,
    IterationMissingError,
    PartLayout,
    Replica,
    SegmentOwner,
    Writing,
    WritingLostError,
    chunk_digest,
)
from castor_runtime.arena.layout import (
    HEADER_BYTES,
    LAYOUT_VERSION,
    BufferRecord,
    buffer_header_bytes,
    buffer_header_offset,
    pack_buffer,
    unpack_buffer,
)

FINGERPRINT = bytes(range(16))
RUN = "0123456789abcdef"
OWNER = SegmentOwner("job", RUN, "node-0", FINGERPRINT)
PART = PartLayout(rank=3, data_bytes=1000, meta_bytes=64, chunk_bytes=96)


def shared_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="castor-test-", dir="/dev/shm"))


@pytest.fixture
def folder() -> Iterator[Path]:
    made = shared_folder()
    yield made
    shutil.rmtree(made)


def content(iteration: int, part: PartLayout = PART) -> bytes:
    return np.random.default_rng(iteration).bytes(part.data_bytes)


def write(replica: Replica, iteration: int, agreed: int | None, generation: int = 0) -> None:
    writing = replica.begin(iteration, generation, agreed)
    writing.data[:] = content(iteration, replica.part)
    writing.commit(f"meta of {iteration}".encode())


def assert_holds(replica: Replica, iteration: int) -> None:
    assert replica.verify(iteration) == []
    snapshot = replica.snapshot(iteration)
    assert snapshot.data == content(iteration, replica.part)
    assert snapshot.meta == f"meta of {iteration}".encode()


def flip(path: Path, offset: int, bit: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ bit]))


def test_what_one_process_commits_the_other_reads(folder: Path) -> None:
    made = Replica.create("castor-x", OWNER, PART, folder=folder)
    seen = Replica.open("castor-x", fingerprint=FINGERPRINT, folder=folder)
    assert (seen.rank, seen.data_bytes, seen.meta_bytes, seen.chunk_bytes) == (3, 1000, 64, 96)
    assert seen.chunks == 11
    assert seen.headers() == (BufferHeader(BufferState.EMPTY),) * 2
    writing = made.begin(7, 2, None)
    assert seen.headers()[writing.buffer] == BufferHeader(BufferState.WRITING, 7, 2)
    assert seen.offered() == set()
    writing.data[:] = content(7)
    writing.commit(b"meta of 7")
    assert seen.offered() == {7}
    assert_holds(seen, 7)
    snapshot = seen.snapshot(7)
    assert (snapshot.rank, snapshot.generation, snapshot.fingerprint) == (3, 2, FINGERPRINT)
    assert snapshot.digests == tuple(
        chunk_digest(content(7)[start : start + 96]) for start in range(0, 1000, 96)
    )


def test_chunks_in_any_order_with_digests_from_outside(folder: Path) -> None:
    replica = Replica.create("castor-x", OWNER, PART, folder=folder)
    writing = replica.begin(1, 0, None)
    digests = [0] * writing.chunks
    for index in (5, 10, 0, 3, 9, 1, 2, 8, 4, 7, 6):
        chunk = content(1)[index * 96 : (index + 1) * 96]
        writing.chunk(index)[:] = chunk
        digests[index] = chunk_digest(chunk)
    writing.commit(b"meta of 1", digests)
    assert_holds(replica, 1)
    with pytest.raises(ValueError, match=r"there is no chunk 11; use 0\.\.10"):
        writing.chunk(11)


def test_a_wrong_digest_from_outside_is_found(folder: Path) -> None:
    replica = Replica.create("castor-x", OWNER, PART, folder=folder)
    writing = replica.begin(1, 0, None)
    digests = [chunk_digest(writing.chunk(index)) for index in range(writing.chunks)]
    digests[4] ^= 1
    writing.commit(b"", digests)
    assert replica.verify(1) == [4]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_threads_find_the_same_damage(folder: Path, workers: int) -> None:
    part = PartLayout(0, (1 << 20) + 5, 0, 1 << 15)
    replica = Replica.create("castor-x", OWNER, part, folder=folder)
    writing = replica.begin(1, 0, None)
    writing.data[:] = content(1, part)
    writing.commit(b"", workers=workers)
    assert replica.verify(1, workers) == []
    data = replica.snapshot(1).data
    for offset in (0, (1 << 15) - 1, 17 << 15, 1 << 20):
        data[offset] ^= 0x80
    assert replica.verify(1, workers) == [0, 17, 32]
    with pytest.raises(ValueError, match="workers must be 1 or more"):
        replica.verify(1, 0)


def test_each_flipped_bit_of_a_complete_buffer_is_found(folder: Path) -> None:
    part = PartLayout(0, 100, 16, 32)
    meta = b"0123456789"
    replica = Replica.create("castor-x", OWNER, part, folder=folder)
    writing = replica.begin(1, 0, None)
    writing.data[:] = content(1, part)
    writing.commit(meta)
    path = folder / "castor-x"
    data = part.data_offset(writing.buffer)
    record = part.record_offset(writing.buffer)
    header = buffer_header_offset(writing.buffer)
    for offset in range(100):
        flip(path, data + offset)
        assert replica.verify(1) == [offset // 32]
        flip(path, data + offset)
    for offset in range(part.table_bytes + len(meta)):
        flip(path, record + offset)
        assert replica.verify(1) == [0, 1, 2, 3]
        with pytest.raises(DamagedPartError, match="castor-x: the digests or metadata"):
            replica.snapshot(1)
        flip(path, record + offset)
    for offset in range(buffer_header_bytes()):
        for bit in range(8):
            flip(path, header + offset, 1 << bit)
            assert replica.headers()[writing.buffer].state is BufferState.CORRUPT
            assert replica.offered() == set()
            with pytest.raises(IterationMissingError, match="no complete buffer of iteration 1"):
                replica.verify(1)
            flip(path, header + offset, 1 << bit)
    assert replica.verify(1) == []


def test_each_flipped_bit_of_the_fixed_header_makes_it_foreign(folder: Path) -> None:
    Replica.create("castor-x", OWNER, PART, folder=folder).close()
    for offset in range(200):
        for bit in range(8):
            flip(folder / "castor-x", offset, 1 << bit)
            with pytest.raises(ForeignCheckpointError, match="castor-x"):
                Replica.open("castor-x", folder=folder)
            flip(folder / "castor-x", offset, 1 << bit)
    Replica.open("castor-x", fingerprint=FINGERPRINT, folder=folder).close()


def test_a_torn_header_is_the_old_one_or_corrupt() -> None:
    old = BufferRecord(BufferHeader(BufferState.WRITING, 8, 1))
    new = BufferRecord(BufferHeader(BufferState.COMPLETE, 8, 1), 33, 0x1234567890ABCDEF)
    before, after = pack_buffer(0, old), pack_buffer(0, new)
    for written in range(len(after)):
        # Stores reach memory in order of address, or in the reverse, or by words of 8.
        for torn in (
            after[:written] + before[written:],
            before[:written] + after[written:],
        ):
            assert unpack_buffer(0, torn) in (None, old) or torn == after
    assert unpack_buffer(0, after) == new
    assert unpack_buffer(1, after) is None


def test_a_foreign_segment_is_refused_by_name(folder: Path) -> None:
    Replica.create("castor-x", OWNER, PART, folder=folder).close()
    with pytest.raises(ForeignCheckpointError, match=r"castor-x holds .* 0001.*, not ffff"):
        Replica.open("castor-x", fingerprint=b"\xff" * 16, folder=folder)
    with (folder / "castor-x").open("r+b") as file:
        file.seek(8)
        file.write((LAYOUT_VERSION + 1).to_bytes(4, "little"))
    with pytest.raises(ForeignCheckpointError, match=f"of layout version {LAYOUT_VERSION + 1}"):
        Replica.open("castor-x", folder=folder)
    (folder / "castor-y").write_bytes(b"something else" * 1000)
    with pytest.raises(ForeignCheckpointError, match="castor-y is no checkpoint memory"):
        Replica.open("castor-y", folder=folder)
    Replica.create("castor-z", OWNER, PART, folder=folder).close()
    os.truncate(folder / "castor-z", HEADER_BYTES)
    with pytest.raises(ForeignCheckpointError, match="castor-z is 4096 bytes long"):
        Replica.open("castor-z", folder=folder)
    with pytest.raises(FileNotFoundError):
        Replica.open("castor-nothing", folder=folder)


def test_a_link_is_not_followed(folder: Path) -> None:
    Replica.create("castor-x", OWNER, PART, folder=folder).close()
    (folder / "castor-link").symlink_to(folder / "castor-x")
    with pytest.raises(OSError, match="symbolic links"):
        Replica.open("castor-link", folder=folder)


def test_a_commit_needs_its_buffer_room_and_all_digests(folder: Path) -> None:
    replica = Replica.create("castor-x", OWNER, PART, folder=folder)
    writing = replica.begin(1, 0, None)
    with pytest.raises(ValueError, match="65 bytes of metadata do not fit into 64"):
        writing.commit(b"m" * 65)
    with pytest.raises(ValueError, match="2 digests for 11 chunks"):
        writing.commit(b"", [1, 2])
    replica.keep_only(None)
    with pytest.raises(WritingLostError, match="was taken from the writer of iteration 1"):
        writing.commit(b"")
    assert replica.offered() == set()
    again = replica.begin(1, 0, None)
    again.commit(b"")
    with pytest.raises(ValueError, match="has ended; begin anew"):
        again.commit(b"")
    again.abandon()
    assert replica.offered() == {1}


def test_of_two_buffers_of_one_iteration_the_newer_generation_is_read(folder: Path) -> None:
    replica = Replica.create("castor-x", OWNER, PART, folder=folder)
    for generation in (2, 5):
        writing = replica.begin(4, generation, None)
        writing.commit(str(generation).encode())
    assert replica.snapshot(4).meta == b"5"
    assert replica.begin(5, 5, agreed=4).buffer == 0
    assert replica.snapshot(4).meta == b"5"


def test_a_snapshot_knows_when_it_was_written_over(folder: Path) -> None:
    replica = Replica.create("castor-x", OWNER, PART, folder=folder)
    write(replica, 1, None)
    snapshot = replica.snapshot(1)
    write(replica, 2, 1)
    assert snapshot.is_current()
    writing = replica.begin(3, 0, 2)
    assert not snapshot.is_current()
    writing.abandon()
    assert not snapshot.is_current()
    assert replica.offered() == {2}


def test_data_takes_arrays_and_sockets_without_a_copy(folder: Path) -> None:
    part = PartLayout(0, 1 << 18, 0, 1 << 16)
    replica = Replica.create("castor-x", OWNER, part, folder=folder)
    writing = replica.begin(1, 0, None)
    np.frombuffer(writing.data, dtype=np.float32)[:] = 1.5

    async def receive() -> None:
        left, right = socket.socketpair()
        with left, right:
            left.setblocking(False)
            right.setblocking(False)
            loop = asyncio.get_running_loop()
            sending = loop.create_task(loop.sock_sendall(left, content(1, part)[: 1 << 16]))
            got = 0
            while got < 1 << 16:
                got += await loop.sock_recv_into(right, writing.chunk(2)[got:])
            await sending

    asyncio.run(receive())
    writing.commit(b"")
    data = Replica.open("castor-x", folder=folder).snapshot(1).data
    assert data[2 << 16 : 3 << 16] == content(1, part)[: 1 << 16]
    assert set(np.frombuffer(data[3 << 16 :], dtype=np.float32)) == {1.5}
    # Tensors begin on a page, whatever the sizes.
    for buffer in range(2):
        assert part.data_offset(buffer) % 4096 == 0
        assert PART.data_offset(buffer) % 4096 == 0


@pytest.mark.long
def test_torch_takes_the_data_as_they_stand(folder: Path) -> None:
    program = """
import sys, warnings
from pathlib import Path
import torch
from castor_runtime.arena import Replica
warnings.simplefilter("error")
replica = Replica.open("castor-x", folder=Path(sys.argv[1]))
writing = replica.begin(1, 0, None)
torch.frombuffer(writing.data, dtype=torch.float32).copy_(torch.arange(250.0))
writing.commit(b"")
tensor = torch.frombuffer(replica.snapshot(1).data, dtype=torch.float32)
assert torch.equal(tensor, torch.arange(250.0))
replica.close()
assert tensor[249] == 249
"""
    replica = Replica.create("castor-x", OWNER, PART, folder=folder)
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True)
    values = np.frombuffer(replica.snapshot(1).data, dtype=np.float32)
    assert list(values) == list(range(250))


def test_the_runtime_needs_no_torch_to_hold_checkpoints() -> None:
    program = "import sys, castor_runtime.arena; assert not {'torch', 'simpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_closing_leaves_views_alive(folder: Path) -> None:
    with Replica.create("castor-x", OWNER, PART, folder=folder) as replica:
        write(replica, 1, None)
        array = np.frombuffer(replica.snapshot(1).data, dtype=np.uint8)
    assert array.tobytes() == content(1)


def test_an_arena_keeps_its_own_across_lives(folder: Path) -> None:
    parts = [PART, PartLayout(5, 5000, 10, 1 << 20)]
    with Arena("job", RUN, "node-0", FINGERPRINT, folder=folder) as arena:
        assert arena.add_parts(parts) == set()
        assert arena.ranks == (3, 5)
        assert arena.segments() == {
            3: f"castor-job-{RUN}-node-0-r3",
            5: f"castor-job-{RUN}-node-0-r5",
        }
        for name in arena.segments().values():
            assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
        write(arena.replica(3), 8, None)
        write(arena.replica(5), 8, None)
        assert arena.add_parts(parts) == {3, 5}
    with Arena("job", RUN, "node-0", FINGERPRINT, folder=folder) as arena:
        assert arena.missing(parts) == []
        assert arena.add_parts(parts) == {3, 5}
        arena.touch()
        assert_holds(arena.replica(3), 8)
        assert_holds(arena.replica(5), 8)
        arena.remove_parts([5, 9])
        assert arena.ranks == (3,)
        assert sorted(path.name for path in folder.iterdir()) == [
            f"castor-job-{RUN}-node-0-r3",
            "castor-job.lock",
        ]
        arena.close(unlink=True)
    assert list(folder.iterdir()) == []


def test_memory_is_two_buffers_a_part_and_headers(folder: Path) -> None:
    part = PartLayout(0, 10 << 20, 1 << 16, 1 << 20)
    with Arena("job", RUN, "node-0", FINGERPRINT, folder=folder) as arena:
        arena.add_parts([part])
        path = folder / arena.segments()[0]
        assert path.stat().st_blocks * 512 <= HEADER_BYTES
        arena.touch(threads=3)
        assert path.stat().st_blocks * 512 == arena.memory_bytes == part.segment_bytes
        wanted = 2 * (part.data_bytes + part.meta_bytes)
        assert wanted < arena.memory_bytes <= wanted + 4 * 4096


def test_other_sizes_are_made_anew_and_other_topologies_refused(folder: Path) -> None:
    with Arena("job", RUN, "node-0", FINGERPRINT, folder=folder) as arena:
        arena.add_parts([PART])
        write(arena.replica(3), 8, None)
    larger = PartLayout(3, 2000, 64, 96)
    with Arena("job", RUN, "node-0", FINGERPRINT, folder=folder) as arena:
        assert arena.add_parts([larger]) == set()
        assert arena.replica(3).offered() == set()
        write(arena.replica(3), 9, None)
        assert_holds(arena.replica(3), 9)
    with Arena("job", RUN, "node-0", b"\1" * 16, folder=folder) as arena:
        with pytest.raises(
            ForeignCheckpointError, match=rf"castor-job-{RUN}-node-0-r3 belongs .* 0001"
        ):
            arena.add_parts([PartLayout(0, 1, 1, 1), larger])
        assert arena.ranks == ()
        assert not (folder / f"castor-job-{RUN}-node-0-r0").exists()
    # Two owners whose names make one file name.
    with Arena("a", RUN, f"{RUN}-b", FINGERPRINT, folder=folder) as arena:
        arena.add_parts([larger])
    with (
        Arena(f"a-{RUN}", RUN, "b", FINGERPRINT, folder=folder) as arena,
        pytest.raises(ForeignCheckpointError, match=rf"agent {RUN}-b of run {RUN} of job a, "),
    ):
        arena.add_parts([larger])


def test_another_run_of_the_name_finds_nothing_of_the_first(folder: Path) -> None:
    """Also where it meets the very file: by the header, not only by the name."""
    other = "fedcba9876543210"
    with Arena("job", RUN, "node-0", FINGERPRINT, folder=folder) as arena:
        arena.add_parts([PART])
        write(arena.replica(3), 17, None)
        left = (folder / arena.segments()[3]).read_bytes()
    with Arena("job", other, "node-0", FINGERPRINT, folder=folder) as arena:
        assert arena.missing([PART]) == [PART]
        (folder / f"castor-job-{other}-node-0-r3").write_bytes(left)
        with pytest.raises(ForeignCheckpointError, match=f"of run {RUN} of job job.*run {other}"):
            arena.add_parts([PART])
    with pytest.raises(ForeignCheckpointError, match=f"is of run {RUN} of job job, not of"):
        Replica.open(f"castor-job-{other}-node-0-r3", run=other, folder=folder)


@pytest.mark.parametrize("damage", ["torn", "empty", "zeros", "short"])
def test_a_segment_whose_maker_died_over_it_is_made_anew(folder: Path, damage: str) -> None:
    with Arena("job", RUN, "node-0", FINGERPRINT, folder=folder) as arena:
        arena.add_parts([PART])
        path = folder / arena.segments()[3]
    if damage == "torn":
        flip(path, 196)
    elif damage == "short":
        os.truncate(path, HEADER_BYTES)
    else:
        path.write_bytes(b"" if damage == "empty" else bytes(PART.segment_bytes))
    with Arena("job", RUN, "node-0", FINGERPRINT, folder=folder) as arena:
        assert arena.add_parts([PART]) == set()
        write(arena.replica(3), 1, None)
        assert_holds(arena.replica(3), 1)


def test_names_and_sizes_are_checked(folder: Path) -> None:
    for job in ("", "a/b", "../x", "-x", "x" * 65, "a b"):
        with pytest.raises(ValueError, match="cannot name shared memory"):
            Arena(job, RUN, "node-0", FINGERPRINT, folder=folder)
    with pytest.raises(ValueError, match="a fingerprint has 16 bytes, not 3"):
        Arena("job", RUN, "node-0", b"abc", folder=folder)
    for sizes in ((-1, 1, 1, 1), (0, 0, 1, 1), (0, 1, -1, 1), (0, 1, 1, 0)):
        with pytest.raises(ValueError, match="or more"):
            PartLayout(*sizes)
    with Arena("job", RUN, "node-0", FINGERPRINT, folder=folder) as arena:
        with pytest.raises(ValueError, match="a rank is named twice"):
            arena.add_parts([PART, PART])
        with pytest.raises(KeyError):
            arena.replica(0)


class ReplicaAgainstModel(RuleBasedStateMachine):
    """Any order of begins, commits, ends and re-openings, against a plain dictionary."""

    @initialize()
    def make(self) -> None:
        self.folder = shared_folder()
        self.replica = Replica.create("castor-x", OWNER, PART, folder=self.folder)
        self.complete: dict[int, tuple[int, int]] = {}  # buffer: (iteration, generation)
        self.writing: Writing | None = None
        self.newest = 0
        self.generation = 0
        self.agreed: int | None = None

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @precondition(lambda self: self.writing is None)
    @rule(ahead=st.booleans())
    def begin(self, ahead: bool) -> None:
        self.newest += ahead
        self.writing = self.replica.begin(self.newest, self.generation, self.agreed)
        self.complete.pop(self.writing.buffer, None)
        self.writing.data[:] = content(self.newest)

    @precondition(lambda self: self.writing is not None)
    @rule(agree=st.booleans())
    def commit(self, agree: bool) -> None:
        assert self.writing is not None
        self.writing.commit(f"meta of {self.newest}".encode())
        self.complete[self.writing.buffer] = (self.newest, self.generation)
        self.writing = None
        if agree:
            self.agreed = self.newest

    @precondition(lambda self: self.writing is not None)
    @rule()
    def abandon(self) -> None:
        assert self.writing is not None
        self.writing.abandon()
        self.writing = None

    @rule()
    def trainer_dies(self) -> None:
        self.writing = None
        self.generation += 1
        self.replica.close()
        self.replica = Replica.open("castor-x", fingerprint=FINGERPRINT, folder=self.folder)

    @precondition(lambda self: self.writing is None)
    @rule(which=st.integers(0, 1))
    def corrupt(self, which: int) -> None:
        if which in self.complete:
            iteration, _ = self.complete[which]
            self.replica.mark_corrupt(iteration)
            self.complete = {b: k for b, k in self.complete.items() if k[0] != iteration}
            if iteration == self.agreed:
                self.agreed = None

    @precondition(lambda self: self.writing is None)
    @rule()
    def recover_to_agreed(self) -> None:
        self.replica.keep_only(self.agreed)
        self.complete = {b: k for b, k in self.complete.items() if k[0] == self.agreed}
        if self.agreed is not None:
            self.newest = self.agreed

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        held = {
            buffer: (header.iteration, header.generation)
            for buffer, header in enumerate(self.replica.headers())
            if header.state is BufferState.COMPLETE
        }
        assert held == self.complete
        assert self.agreed is None or self.agreed in self.replica.offered()
        for iteration, _ in self.complete.values():
            assert_holds(self.replica, iteration)


TestReplicaAgainstModel = ReplicaAgainstModel.TestCase
TestReplicaAgainstModel.settings = settings(max_examples=60, stateful_step_count=30)


def test_a_standby_s_memory_is_given_to_another_rank_and_comes_empty(folder: Path) -> None:
    part = PartLayout(rank=0, data_bytes=3 * 4096 + 5, meta_bytes=100, chunk_bytes=4096)
    other = PartLayout(rank=7, data_bytes=3 * 4096 + 5, meta_bytes=100, chunk_bytes=4096)
    with Arena("job", RUN, "spare", b"f" * 16, folder=folder) as arena:
        arena.add_parts([part])
        arena.replica(0).begin(4, 1, None).commit(b"meta")
        arena.reassign(0, other)
        assert arena.ranks == (7,)
        assert arena.replica(7).offered() == frozenset()
        arena.replica(7).begin(5, 2, None).commit(b"seven")
        assert not arena.missing([other])
    assert [path.name for path in folder.glob("*-r*")] == [f"castor-job-{RUN}-spare-r7"]
    with Replica.open(f"castor-job-{RUN}-spare-r7", folder=folder) as again:
        assert again.rank == 7
        assert again.snapshot(5).meta == b"seven"


def test_memory_of_another_size_is_not_given_away(folder: Path) -> None:
    part = PartLayout(rank=0, data_bytes=4096, meta_bytes=100, chunk_bytes=4096)
    with Arena("job", RUN, "spare", b"f" * 16, folder=folder) as arena:
        arena.add_parts([part])
        with pytest.raises(ValueError, match="cannot hold"):
            arena.reassign(0, PartLayout(rank=1, data_bytes=8192, meta_bytes=100, chunk_bytes=4096))
        assert arena.ranks == (0,)


def test_a_replica_of_one_buffer_is_written_over_by_what_is_agreed_on(folder: Path) -> None:
    part = replace(PART, buffers=1)
    with Arena("job", RUN, "node-0", FINGERPRINT, folder=folder) as arena:
        arena.add_parts([part])
        assert arena.memory_bytes == part.segment_bytes < PART.segment_bytes
        replica = arena.replica(part.rank)
        write(replica, 4, None)
        with pytest.raises(ValueError, match="agree first"):
            replica.begin(5, 0, 4)
        assert_holds(replica, 4)
        replica.begin(5, 0, 5)
        assert replica.offered() == frozenset()
        write(replica, 5, 5)
        arena.make_room(part.rank, 5000)
        writing = replica.begin(6, 0, 6)
        writing.commit(b"m" * 5000)
        assert replica.snapshot(6).meta == b"m" * 5000
    with Arena("job", RUN, "node-0", FINGERPRINT, folder=folder) as again:
        # Two are to be there: it is made anew. One is enough: two are kept as they are.
        assert again.missing([part]) == []
        assert again.add_parts([PART]) == frozenset()
        write(again.replica(PART.rank), 7, None)
        assert again.missing([part]) == []
        assert_holds(again.replica(PART.rank), 7)
        other = replace(part, rank=7)
        with pytest.raises(ValueError, match="cannot hold"):
            again.reassign(PART.rank, other)
