"""Writers killed with SIGKILL: at every line of a commit, and at random moments.

Run as a program, this file is the harness that forks the writers: a process with one thread.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from castor_runtime import arena as arena_package
from castor_runtime.arena import Arena, ControlBlock, PartLayout, Replica

pytestmark = pytest.mark.long  # all of it starts real processes, many times

Trace = Callable[[FrameType, str, object], object]

RUN = "0123456789abcdef"
FINGERPRINT = bytes(16)
PART = PartLayout(rank=0, data_bytes=40_000, meta_bytes=100, chunk_bytes=4096)
NAME = f"castor-job-{RUN}-node-0-r0"
CONTROL = f"castor-job-{RUN}-node-0-control"


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="castor-test-", dir="/dev/shm"))
    yield made
    shutil.rmtree(made)


def harness(mode: str, folder: Path) -> int:
    done = subprocess.run(
        [sys.executable, __file__, mode, str(folder)], check=True, stdout=subprocess.PIPE, text=True
    )
    return int(done.stdout)


def test_killed_at_any_line_a_writer_leaves_what_was_agreed(folder: Path) -> None:
    assert harness("lines", folder) > 50


def test_killed_at_any_moment_a_writer_leaves_what_was_agreed(folder: Path) -> None:
    assert harness("moments", folder) > 50


def write(replica: Replica, iteration: int, agreed: int | None) -> None:
    writing = replica.begin(iteration, 0, agreed)
    for chunk in range(writing.chunks):
        view = writing.chunk(chunk)
        view[:] = bytes([(iteration + chunk) % 251]) * len(view)
    writing.commit(str(iteration).encode())


def check(folder: Path, agreed: int) -> int:
    """Return the newest iteration after all that is complete was found whole."""
    with Replica.open(NAME, fingerprint=FINGERPRINT, folder=folder) as replica:
        offered = replica.offered()
        assert agreed in offered, (agreed, replica.headers())
        for iteration in offered:
            assert abs(iteration - agreed) <= 1
            assert replica.verify(iteration) == []
            snapshot = replica.snapshot(iteration)
            assert snapshot.meta == str(iteration).encode()
            for chunk in range(PART.chunks):
                start, end = PART.chunk_span(chunk)
                wanted = bytes([(iteration + chunk) % 251]) * (end - start)
                assert snapshot.data[start:end] == wanted
            del snapshot
        return max(offered)


def killed_at_lines(folder: Path) -> int:
    """Kill a writer at its first line in the arena's code, its second, ..., to the end."""
    inside = str(Path(arena_package.__file__).parent)
    with Arena("job", RUN, "node-0", FINGERPRINT, folder=folder) as arena:
        arena.add_parts([PART])
        write(arena.replica(0), 1, None)
    agreed = 1
    for line in itertools.count(1):
        child = os.fork()
        if child == 0:
            replica = Replica.open(NAME, folder=folder)
            kill_at(line, inside)
            write(replica, agreed + 1, agreed)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        newest = check(folder, agreed)
        if not os.WIFSIGNALED(status):
            assert newest == agreed + 1
            return line - 1
        agreed = newest
    raise AssertionError


def kill_at(line: int, inside: str) -> None:
    """Kill this process when it comes to its `line`-th line of code under the folder `inside`."""
    passed = 0

    def trace(frame: FrameType, event: str, _: object) -> Trace | None:
        nonlocal passed
        if not frame.f_code.co_filename.startswith(inside):
            return None
        passed += event == "line"
        if passed == line:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def killed_at_moments(folder: Path) -> int:
    """Kill a writer that commits without end, 200 times; return how far it got."""
    moments = random.Random(20260101)
    with (
        Arena("job", RUN, "node-0", FINGERPRINT, folder=folder) as arena,
        ControlBlock.create("job", RUN, "node-0", 1, folder=folder) as control,
    ):
        arena.add_parts([PART])
        write(arena.replica(0), 1, None)
        control.rank(0).agreed = 1
    for _ in range(200):
        child = os.fork()
        if child == 0:
            replica = Replica.open(NAME, folder=folder)
            counters = ControlBlock.open(CONTROL, folder=folder).rank(0)
            while True:
                agreed = counters.agreed
                write(replica, agreed + 1, agreed)
                counters.agreed = agreed + 1
        time.sleep(moments.uniform(0.0, 0.01))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with ControlBlock.open(CONTROL, folder=folder) as control:
            agreed = control.rank(0).agreed
            newest = check(folder, agreed)
            control.rank(0).agreed = newest
    return agreed


if __name__ == "__main__":
    run = {"lines": killed_at_lines, "moments": killed_at_moments}[sys.argv[1]]
    sys.stdout.write(str(run(Path(sys.argv[2]))))
