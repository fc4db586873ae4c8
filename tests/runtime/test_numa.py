"""Where checkpoint memory is to lie: topologies in files, policies as this kernel keeps them."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import secrets
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from mmap import mmap
from pathlib import Path

import pytest

from castor_policy.agents.job_spec import JobSpec
from castor_runtime.agent.memory import CheckpointMemory, RankLayout
from castor_runtime.arena import SHARED_MEMORY, Arena, NearGpus, PartLayout, Topology
from castor_runtime.arena.numa import prefer_node
from castor_runtime.arena.segments import create_file, open_file
from castor_runtime.doctor import host
from castor_runtime.doctor.finding import Health

RUN = "0123456789abcdef"
DATA = 3 * 4096
TWO_SOCKETS = [0, 0, 0, 0, 1, 1, 1, 1]
DEFAULT, PREFERRED = 0, 1
"""Modes of linux/mempolicy.h."""


def system(root: Path, nodes: int, gpus: list[int]) -> Path:
    """Write what the kernel and the driver say of so many nodes, and of GPUs at these.

    Minors run against the addresses, as they may.
    """
    for node in range(nodes):
        folder = root / f"sys/devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(f"{16 * node}-{16 * node + 15}\n")
    (root / "dev").mkdir()
    for gpu, node in enumerate(gpus):
        address, minor = f"0000:{16 * gpu + 7:02x}:00.0", len(gpus) - 1 - gpu
        device = root / "sys/bus/pci/devices" / address
        device.mkdir(parents=True)
        (device / "numa_node").write_text(f"{node}\n")
        told = root / "proc/driver/nvidia/gpus" / address
        told.mkdir(parents=True)
        (told / "information").write_text(
            f"Model: \t\t NVIDIA H100\nGPU UUID: \t GPU-{gpu}{gpu}00-abcd\nBus Type: \t PCIe\n"
            f"Bus Location: \t {address}\nDevice Minor: \t {minor}\n"
        )
        (root / f"dev/nvidia{minor}").touch()
    return root


def gpu_nodes(root: Path, **environment: str) -> tuple[int | None, ...]:
    return Topology.read(root).gpu_nodes(environment)


@pytest.fixture
def two_sockets(tmp_path: Path) -> Path:
    return system(tmp_path, 2, TWO_SOCKETS)


# ---- the topology ------------------------------------------------------------------------------


def test_where_there_is_one_node_nothing_is_placed(tmp_path: Path) -> None:
    found = Topology.read(system(tmp_path / "one", 1, [0, 0]))
    assert (found.nodes, found.gpu_nodes({})) == ((0,), ())
    assert Topology.read(tmp_path) == Topology((), ())


def test_gpus_are_numbered_by_address_and_as_the_user_names_them(two_sockets: Path) -> None:
    assert gpu_nodes(two_sockets) == tuple(TWO_SOCKETS)
    for named, nodes in [
        ("6,0", (1, 0)),
        ("GPU-5500,GPU-1", (1, 0)),
        ("0, 7,8,1", (0, 1)),  # CUDA ends at a name of none
        ("0,GPU-,1", (0,)),  # it is the start of several
        ("MIG-0f2c,4", (None, 1)),
        ("-1", ()),
        ("", ()),
    ]:
        assert gpu_nodes(two_sockets, CUDA_VISIBLE_DEVICES=named) == nodes, named
    assert gpu_nodes(two_sockets, DS_ACCELERATOR="cpu") == ()


def test_a_gpu_that_this_process_may_not_open_is_not_counted(two_sockets: Path) -> None:
    (two_sockets / "dev/nvidia7").unlink()  # of the first address
    assert gpu_nodes(two_sockets) == tuple(TWO_SOCKETS[1:])
    assert gpu_nodes(two_sockets, CUDA_VISIBLE_DEVICES="2,3") == (0, 1)


def test_a_node_that_is_not_known_or_has_no_processors_is_none(tmp_path: Path) -> None:
    root = system(tmp_path, 2, [0, -1, 2, 1, 1])
    gpus_own = root / "sys/devices/system/node/node2"  # memory of a GPU that the kernel lists
    gpus_own.mkdir()
    (gpus_own / "cpulist").write_text("\n")
    (root / "sys/bus/pci/devices/0000:37:00.0/numa_node").unlink()
    assert gpu_nodes(root) == (0, None, None, None, 1)


def test_parts_go_by_local_rank_whosever_machine_they_are_of() -> None:
    near = NearGpus((0, None, 1), ranks_per_machine=4)
    assert [near.node_of(rank) for rank in range(8)] == [0, None, 1, None, 0, None, 1, None]


# ---- the kernel's policy -----------------------------------------------------------------------


def policy(mapped: mmap) -> tuple[int, int]:
    """Return mode and mask of nodes of the policy that pages of a mapping are taken by."""
    number = {"x86_64": 239, "aarch64": 236}[platform.machine()]
    mode, mask = ctypes.c_int(-1), (ctypes.c_ulong * 16)()
    of_address = 2
    done = ctypes.CDLL(None).syscall(
        ctypes.c_long(number),
        ctypes.byref(mode),
        mask,
        ctypes.c_ulong(1025),
        ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(mapped))),
        ctypes.c_ulong(of_address),
    )
    assert done == 0
    return mode.value, mask[0]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in shared memory, where the kernel lets policies be set."""
    try:
        with mmap(-1, 4096) as page:
            prefer_node(page, 0)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS):
            raise
        pytest.skip(f"this kernel, or container, refuses mbind: {error}")
    made = SHARED_MEMORY / f"castor-test-{secrets.token_hex(4)}"
    made.mkdir()
    yield made
    for path in made.iterdir():
        path.unlink()
    made.rmdir()


def test_a_file_keeps_its_policy_for_all_who_map_it(folder: Path) -> None:
    path = folder / "segment"
    with create_file(path, 5 * 4096) as mapped:
        assert policy(mapped) == (DEFAULT, 0)
        prefer_node(mapped, 0)
    with open_file(path) as again:
        assert policy(again) == (PREFERRED, 1)


def test_segments_are_placed_before_they_have_pages(folder: Path) -> None:
    near, seen = NearGpus((0, None), 2), []

    def place(rank: int, mapped: mmap) -> None:
        near.place(rank, mapped)
        (path,) = folder.glob(f"*-r{rank}")
        seen.append((rank, path.stat().st_blocks))

    parts = [PartLayout(rank, DATA, 64, 4096) for rank in (2, 3)]
    with Arena("job", RUN, "node-0", b"f" * 16, folder=folder, place=place) as arena:
        arena.add_parts(parts)
        assert seen == [(2, 0), (3, 0)]
        arena.touch()
        with open_file(folder / arena.replica(2).name) as own:
            assert policy(own) == (PREFERRED, 1)
        with open_file(folder / arena.replica(3).name) as unknown:
            assert policy(unknown) == (DEFAULT, 0)
        arena.add_parts(parts)
    assert len(seen) == 2  # those that are there already are as they were


def assert_is_used(memory: CheckpointMemory, ranks: tuple[int, ...]) -> None:
    for rank in ranks:
        writing = memory.replica(rank).begin(4, 1, None)
        writing.data[:] = bytes([rank]) * DATA
        writing.commit(b"meta")
        assert memory.replica(rank).verify(4) == []


@contextmanager
def memory_of(
    root: Path, replicas: tuple[tuple[int, ...], ...], local_ranks: int
) -> Iterator[CheckpointMemory]:
    job = f"t{secrets.token_hex(4)}"
    spec = JobSpec(job, len(replicas), local_ranks, "group", replicas, "train.py")
    memory = CheckpointMemory(spec, "node-0", system=root)
    try:
        yield memory
    finally:
        memory.close(unlink=True)


def layouts(*sizes: int) -> dict[int, RankLayout]:
    return {rank: RankLayout(rank, size, 64, 4096, "ab" * 16) for rank, size in enumerate(sizes)}


def test_an_agents_memory_lies_where_its_gpus_are(
    tmp_path: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of the own parts (2, 3) and of those of another machine (0, 1), by local rank."""
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    root = system(tmp_path, 2, [-1, 0])
    with memory_of(root, ((0, 1), (1, 0)), 2) as memory:
        memory.hold(1, layouts(*[DATA] * 4))
        for rank, wanted in enumerate([DEFAULT, PREFERRED, DEFAULT, PREFERRED]):
            with open_file(SHARED_MEMORY / memory.segments()[rank]) as mapped:
                assert policy(mapped)[0] == wanted, rank
    assert capsys.readouterr().err == ""


def test_a_standbys_memory_goes_to_a_part_of_the_same_node(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 2 is larger, so that what the standby took cannot go over in order."""
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    root = system(tmp_path, 2, [0, 1])
    with memory_of(root, ((0,), (1,)), 2) as memory:
        sizes = layouts(DATA, DATA, 2 * DATA, DATA)
        memory.hold(0, sizes)
        taken = {rank: (SHARED_MEMORY / name).stat() for rank, name in memory.segments().items()}
        memory.hold(1, sizes)
        given = (SHARED_MEMORY / memory.segments()[3]).stat()
        assert given.st_ino == taken[1].st_ino
        assert_is_used(memory, (3,))


# ---- refusals ----------------------------------------------------------------------------------


def forbid_mbind() -> None:
    """Have the kernel refuse the call to this thread, as Docker's profile does."""
    load, equal, answer = 0x20, 0x15, 0x06
    refuse, allow = 0x00050000 | errno.EPERM, 0x7FFF0000
    mbind = {"x86_64": 237, "aarch64": 235}[platform.machine()]
    lines = [(load, 0, 0, 0), (equal, 0, 1, mbind), (answer, 0, 0, refuse), (answer, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *line) for line in lines))
    program = struct.pack("<H6xQ", len(lines), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, seccomp, by_filter = 38, 22, 2
    assert libc.prctl(no_new_privileges, 1, 0, 0, 0) == 0
    assert libc.prctl(seccomp, by_filter, program, 0, 0) == 0, os.strerror(ctypes.get_errno())


def in_thread_without_mbind(work: Callable[[], None]) -> None:
    with ThreadPoolExecutor(1, initializer=forbid_mbind) as pool:
        pool.submit(work).result()


def test_a_container_that_forbids_it_is_told_of_once_and_memory_is_there(
    two_sockets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    looked = []

    def work() -> None:
        with memory_of(two_sockets, ((0, 1), (1, 0)), 2) as memory:
            memory.hold(0, layouts(*[DATA] * 4))
            assert_is_used(memory, (0, 1, 2, 3))
        looked.append(host.numa(two_sockets, {}))

    in_thread_without_mbind(work)
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("castor: checkpoint memory lies where the kernel puts it")
    assert "mbind to node 0: Operation not permitted" in said
    assert "--cap-add SYS_NICE" in said
    assert looked[0].health == Health.NOTE
    assert "node 0 has GPUs 0, 1, 2, 3; refused" in looked[0].found
    assert "--cap-add SYS_NICE" in looked[0].found


def test_a_node_that_is_not_there_is_told_of(folder: Path) -> None:
    with mmap(-1, 4096) as page, pytest.raises(OSError, match="Invalid argument") as refused:
        prefer_node(page, 900)
    assert refused.value.errno == errno.EINVAL


# ---- the doctor --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "gpus", "health", "found"),
    [
        (1, [0, 0], Health.GOOD, "one node: all memory is as near"),
        (2, [], Health.GOOD, "2 nodes; no GPU of NVIDIA's is used: memory is where"),
        (2, [0, 0], Health.GOOD, "node 0 has GPUs 0, 1: checkpoint memory will be there"),
        (2, [-1, 0], Health.NOTE, "2 nodes; node 0 has GPUs 1; not known of GPUs 0"),
        (2, [900, 0], Health.NOTE, "2 nodes; node 0 has GPUs 1; not known of GPUs 0"),
    ],
)
def test_what_the_doctor_finds(
    tmp_path: Path, folder: Path, nodes: int, gpus: list[int], health: Health, found: str
) -> None:
    looked = host.numa(system(tmp_path, nodes, gpus), {})
    assert (looked.health, found in looked.found) == (health, True), looked
    assert bool(looked.advice) == (health == Health.NOTE)
