"""Room and life: the budget, the counters between agent and trainer, and what the dead leave."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from castor_configs.errors import InputError
from castor_runtime.arena import (
    Arena,
    ControlBlock,
    ForeignCheckpointError,
    JobLock,
    PartLayout,
    Replica,
    TrainerPhase,
    available_bytes,
    check_budget,
    remove_dead,
    segments,
)
from castor_runtime.arena.budget import cgroup_free_bytes

RUN = "0123456789abcdef"
FINGERPRINT = bytes(16)
PART = PartLayout(rank=0, data_bytes=1 << 16, meta_bytes=100, chunk_bytes=4096)

AGENT = """
import sys
from pathlib import Path
from castor_runtime.arena import Arena, ControlBlock, PartLayout
job, run, agent, rank, folder = sys.argv[1:]
arena = Arena(job, run, agent, bytes(16), folder=Path(folder))
arena.add_parts([PartLayout(int(rank), 1 << 16, 100, 4096)])
control = ControlBlock.create(job, run, agent, 1, folder=Path(folder))
arena.replica(int(rank)).begin(1, 0, None).commit(b"")
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="castor-test-", dir="/dev/shm"))
    yield made
    shutil.rmtree(made)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def agent(job: str, name: str, rank: int, folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", AGENT, job, RUN, name, str(rank), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def test_only_what_is_dead_is_removed(folder: Path) -> None:
    with agent("a-b", "node-0", 0, folder) as first, agent("a-b", "node-1", 1, folder) as second:
        first.kill()
        first.wait()
        # Its memory is what the other's trainers may need, and its own next life.
        everything = names(folder)
        assert remove_dead(folder) == []
        assert names(folder) == everything
        with Replica.open(f"castor-a-b-{RUN}-node-0-r0", folder=folder) as replica:
            assert replica.verify(1) == []
        with agent("a", "b", 0, folder):
            second.kill()
            second.wait()
            assert remove_dead(folder, job="a") == []
            assert remove_dead(folder) == [
                f"castor-a-b-{RUN}-node-0-control",
                f"castor-a-b-{RUN}-node-0-r0",
                f"castor-a-b-{RUN}-node-1-control",
                f"castor-a-b-{RUN}-node-1-r1",
            ]
            assert names(folder) == [
                f"castor-a-{RUN}-b-control",
                f"castor-a-{RUN}-b-r0",
                "castor-a.lock",
            ]
    assert remove_dead(folder) == [f"castor-a-{RUN}-b-control", f"castor-a-{RUN}-b-r0"]
    assert names(folder) == []


def test_in_the_machines_own_shared_memory() -> None:
    job = f"test-{os.getpid()}"
    with Arena(job, RUN, "node-0", FINGERPRINT) as arena:
        arena.add_parts([PART])
        assert stat.S_IMODE(Path("/dev/shm", arena.segments()[0]).stat().st_mode) == 0o600
        assert remove_dead(job=job) == []
    assert remove_dead(job=job) == [f"castor-{job}-{RUN}-node-0-r0"]
    assert not list(Path("/dev/shm").glob(f"castor-{job}*"))


def test_an_unreadable_segment_goes_when_no_job_can_own_it(folder: Path) -> None:
    with JobLock("a-b", RUN, folder=folder):
        (folder / "castor-a-b-c-r0").write_bytes(b"")
        assert remove_dead(folder) == []
        assert "castor-a-b-c-r0" in names(folder)
    assert remove_dead(folder) == ["castor-a-b-c-r0"]
    assert names(folder) == []


def test_the_last_to_go_takes_the_lock_file_along(folder: Path) -> None:
    with JobLock("job", RUN, folder=folder):
        with JobLock("job", RUN, folder=folder):
            pass
        assert names(folder) == ["castor-job.lock"]
    assert names(folder) == []


def test_what_is_not_ours_stays(folder: Path) -> None:
    (folder / "other-r0").write_bytes(b"")
    (folder / "castor-notes").write_bytes(b"")
    (folder / "castor-folder-r0").mkdir()
    (folder / "castor-link-a-r0").symlink_to(folder / "other-r0")
    before = names(folder)
    assert remove_dead(folder) == []
    assert names(folder) == before


def test_a_lock_taken_while_its_file_is_removed_is_taken_again(folder: Path) -> None:
    """A newcomer that waits for the remover's lock must not end with a lock that nobody sees."""
    for _ in range(20):
        stop = threading.Event()

        def sweep(stop: threading.Event = stop) -> None:
            while not stop.is_set():
                remove_dead(folder)

        sweeper = threading.Thread(target=sweep)
        sweeper.start()
        try:
            for _ in range(20):
                with JobLock("job", RUN, folder=folder):
                    assert (folder / "castor-job.lock").exists()
                    with Arena("job", RUN, "node-0", FINGERPRINT, folder=folder) as arena:
                        arena.add_parts([PART])
                        assert (folder / f"castor-job-{RUN}-node-0-r0").exists()
        finally:
            stop.set()
            sweeper.join()


def test_the_counters_are_seen_across_processes(folder: Path) -> None:
    with ControlBlock.create("job", RUN, "node-0", 3, folder=folder) as control:
        assert stat.S_IMODE((folder / control.name).stat().st_mode) == 0o600
        program = """
import os, sys
from pathlib import Path
from castor_runtime.arena import ControlBlock, TrainerPhase
block = ControlBlock.open(sys.argv[1], folder=Path(sys.argv[2]))
line = block.rank(1)
line.heartbeat = 2**64 - 1
line.iteration = 3
line.agreed = 4
line.collectives = os.getpid()
line.phase = TrainerPhase.TRAINING
"""
        child = subprocess.Popen([sys.executable, "-c", program, control.name, str(folder)])
        assert child.wait() == 0
        line = control.rank(1)
        assert (line.heartbeat, line.iteration, line.agreed) == (2**64 - 1, 3, 4)
        assert (line.collectives, line.phase) == (child.pid, TrainerPhase.TRAINING)
        for other in (0, 2):
            assert control.rank(other).heartbeat == 0
            assert control.rank(other).phase is TrainerPhase.ABSENT
        line.clear()
        assert (line.heartbeat, line.collectives, line.phase) == (0, 0, TrainerPhase.ABSENT)
        assert (control.job, control.agent) == ("job", "node-0")
        with pytest.raises(ValueError, match=r"there is no local rank 3; use 0\.\.2"):
            control.rank(3)
        control.close(unlink=True)
    assert names(folder) == []


def test_a_control_segment_of_something_else_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="local_ranks must be 1 or more"):
        ControlBlock.create("job", RUN, "node-0", 0, folder=folder)
    for content in (b"", b"x" * 9000):
        (folder / "castor-x-control").write_bytes(content)
        with pytest.raises(ForeignCheckpointError, match="castor-x-control is no control"):
            ControlBlock.open("castor-x-control", folder=folder)
    with ControlBlock.create("job", RUN, "node-0", 4, folder=folder) as control:
        os.truncate(folder / control.name, 4096)
        with pytest.raises(ForeignCheckpointError, match="is cut short"):
            ControlBlock.open(control.name, folder=folder)


def test_what_does_not_fit_is_told_before_it_is_made(folder: Path) -> None:
    huge = [PartLayout(rank, 1 << 50, 1000, 1 << 40) for rank in (4, 9)]
    with Arena("job", RUN, "node-0", FINGERPRINT, folder=folder) as arena:
        with pytest.raises(InputError) as caught:
            arena.add_parts(huge, live_note="the trainers use 3 GiB")
        assert names(folder) == ["castor-job.lock"]
    text = str(caught.value)
    assert "checkpoint memory does not fit on this machine" in text
    assert re.search(r"part of rank 4, 2 buffers +2097152\.000 GiB", text)
    assert re.search(r"part of rank 9, 2 buffers +2097152\.000 GiB", text)
    assert re.search(r"needed +4194304\.000 GiB", text)
    assert re.search(r"memory available, too little +\d+\.\d+ GiB", text)
    assert re.search(rf"room in {folder}, too little +\d+\.\d+ GiB", text)
    assert "the trainers use 3 GiB" in text
    assert "hold fewer replicas" in text


def test_the_limit_counts_what_is_held_and_the_room_does_not(folder: Path) -> None:
    first, second = PART, PartLayout(1, 1 << 16, 100, 4096)
    limit_bytes = first.segment_bytes + second.segment_bytes
    with Arena("job", RUN, "node-0", FINGERPRINT, folder=folder) as arena:
        arena.add_parts([first], limit_bytes=limit_bytes)
        with pytest.raises(InputError, match="left of the limit, too little"):
            arena.add_parts([second], limit_bytes=limit_bytes - 1)
        arena.add_parts([second], limit_bytes=limit_bytes)
    # What is there already is not asked for again.
    with Arena("job", RUN, "node-0", FINGERPRINT, folder=folder) as arena:
        assert arena.add_parts([first, second], limit_bytes=1) == {0, 1}
    check_budget([first], live_note="", limit_bytes=0, folder=folder)


def test_memory_promised_to_one_agent_is_not_promised_to_another(folder: Path) -> None:
    status = os.statvfs(folder)
    there = min(available_bytes(), status.f_bavail * status.f_frsize)
    part = PartLayout(0, there * 35 // 100, 0, 1 << 24)  # twice that with two buffers
    with (
        Arena("job", RUN, "node-0", FINGERPRINT, folder=folder) as first,
        Arena("job", RUN, "node-1", FINGERPRINT, folder=folder) as second,
    ):
        first.add_parts([part])
        with pytest.raises(InputError, match=r"\(promised to other segments\)"):
            second.add_parts([part])


def test_cgroups_of_both_versions_bound_the_memory(tmp_path: Path) -> None:
    for path, text in {
        "memory.max": "max",
        "memory.current": "0",
        "memory.stat": "inactive_file 0",
        "jobs/memory.max": "1000",
        "jobs/memory.current": "700",
        "jobs/memory.stat": "anon 650\ninactive_file 50\n",
        "jobs/mine/memory.max": "100",
        "jobs/mine/memory.current": "170",
        "jobs/mine/memory.stat": "anon 100\ninactive_file 10\n",
        "memory/mine/memory.limit_in_bytes": "5000",
        "memory/mine/memory.usage_in_bytes": "1000",
        "memory/mine/memory.stat": "inactive_file 1\ntotal_inactive_file 7\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert cgroup_free_bytes("0::/jobs/mine\n", tmp_path) == [0, 350]
    assert cgroup_free_bytes("8:pids:/\n4:cpu,memory:/mine\n0::/\n", tmp_path) == [4007]
    assert cgroup_free_bytes("0::/elsewhere\n", tmp_path) == []
    assert 0 < available_bytes() < 1 << 50


def test_running_out_of_memory_is_an_input_error(folder: Path) -> None:
    with Arena("job", RUN, "node-0", FINGERPRINT, folder=folder) as arena:
        arena.add_parts([PART])
        os.truncate(folder / arena.segments()[0], 4096)
        with pytest.raises(InputError, match=r"memory for checkpoints ran out after 0\.00 of"):
            arena.touch()
        with pytest.raises(ValueError, match="threads must be 1 or more"):
            arena.touch(threads=0)


def test_an_older_kernel_takes_its_pages_from_the_file_system(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "_MADV_POPULATE_READ", 9999)  # EINVAL, as on Linux before 5.14
    with Arena("job", RUN, "node-0", FINGERPRINT, folder=folder) as arena:
        arena.add_parts([PART])
        writing = arena.replica(0).begin(1, 0, None)
        writing.data[:5] = b"hello"
        arena.touch()
        status = (folder / arena.segments()[0]).stat()
        assert status.st_blocks * 512 == arena.memory_bytes
        assert writing.data[:5] == b"hello"
        writing.data.release()
