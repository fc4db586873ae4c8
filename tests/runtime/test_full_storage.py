"""A persistent tier that is full: on a real file system without room, and with room again."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from castor_policy.agents.effects import Report
from castor_policy.agents.events import PersistEnded
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.worker import Worker
from castor_policy.job_options import PersistenceOptions
from castor_records.events.event import Entry
from castor_records.events.storing import Persisted, PersistFailed
from castor_runtime.launcher.result_file import persistent
from castor_runtime.persistent.durable_files import write_durably
from castor_runtime.persistent.local_tier import LocalTier
from castor_runtime.persistent.manifest import Attempt, Receipt, write_receipt
from castor_runtime.persistent.retention import (
    abandon,
    drop_cut_off,
    is_abandoned,
    publish_and_prune,
)
from castor_runtime.persistent.storage import (
    attempt_folder,
    attempts_folder,
    complete_iterations,
    start_attempt,
)

ROOM_BYTES = 1 << 20


@pytest.fixture
def small(tmp_path: Path, needs: Callable[..., None]) -> Iterator[Path]:
    """A file system with room for a mebibyte."""
    needs("mount", "umount", root=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM_BYTES}", "castor-test", str(tmp_path)]
    subprocess.run(mount, check=True, timeout=30)
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True, timeout=30)


def attempt_of(iteration: int, generation: int = 1) -> Attempt:
    return Attempt("job", "ab" * 16, iteration, generation, 1)


def share(folder: Path, attempt: Attempt, size_bytes: int) -> None:
    """Write a machine's share: one file, and its receipt."""
    staging = start_attempt(LocalTier(folder), attempt)
    assert staging is not None
    write_durably(folder / staging / "part", bytes(size_bytes))
    write_receipt(LocalTier(folder), staging, Receipt(attempt, 0, ()))


def make_folders(folder: Path, count: int) -> None:
    for number in range(count):
        (folder / f"filler-{number}").mkdir()


def test_what_an_attempt_took_is_free_again_once_it_is_given_up(small: Path) -> None:
    share(small, attempt_of(10), ROOM_BYTES // 2)
    assert publish_and_prune(LocalTier(small), attempt_of(10), keep=1)
    staging = start_attempt(LocalTier(small), attempt_of(20))
    assert staging is not None
    write_durably(small / staging / "another-machines", bytes(ROOM_BYTES // 4))
    with pytest.raises(OSError, match=r"(?i)no space") as full:
        share(small, attempt_of(20), ROOM_BYTES // 2)
    assert full.value.errno == errno.ENOSPC
    assert not is_abandoned(LocalTier(small), attempt_of(20))
    abandon(LocalTier(small), attempt_of(20))
    assert is_abandoned(LocalTier(small), attempt_of(20))
    assert not list((small / attempts_folder(LocalTier(small), "job")).iterdir())
    share(small, attempt_of(30), ROOM_BYTES // 3)  # there is room for a smaller one
    assert publish_and_prune(LocalTier(small), attempt_of(30), keep=1)
    assert complete_iterations(LocalTier(small)) == (30,)
    assert not is_abandoned(LocalTier(small), attempt_of(30))


def test_room_is_made_where_there_is_not_even_room_for_a_folder(small: Path) -> None:
    share(small, attempt_of(10), 1000)
    inodes = ["mount", "-o", "remount,nr_inodes=12", str(small)]
    subprocess.run(inodes, check=True, timeout=30)
    with pytest.raises(OSError, match=r"(?i)no space"):
        make_folders(small, 20)
    abandon(LocalTier(small), attempt_of(10))
    assert is_abandoned(LocalTier(small), attempt_of(10))


def test_attempts_that_a_failure_cut_off_are_removed_before_the_next_is_written(
    tmp_path: Path,
) -> None:
    for generation in (1, 2, 3):
        share(tmp_path, attempt_of(10 + generation, generation), 10)
    drop_cut_off(LocalTier(tmp_path), "job", 3)
    assert [
        path.name for path in (tmp_path / attempts_folder(LocalTier(tmp_path), "job")).iterdir()
    ] == [Path(attempt_folder(LocalTier(tmp_path), attempt_of(13, 3))).name]


def test_a_failing_tier_is_in_the_agents_report_until_it_works_again() -> None:
    spec = JobSpec(
        "job",
        1,
        1,
        "group",
        ((0,),),
        "train.py",
        persistence=PersistenceOptions(tiers=("/storage",)),
    )
    worker = Worker(spec, "node-0", "i0", "host:0", False, 0.0)
    [told] = worker.handle(PersistEnded(10, "OSError: No space left on device"), 1.0)
    assert isinstance(told, Report)
    assert told.report.persist_failure == "OSError: No space left on device"
    assert worker.handle(PersistEnded(20, "OSError: No space left on device"), 2.0) == []
    [well] = worker.handle(PersistEnded(30), 3.0)
    assert isinstance(well, Report)
    assert well.report.persist_failure == ""


def test_the_result_holds_every_share_that_failed() -> None:
    failed = {"machine": 1, "iteration": 20, "generation": 1, "cause": "full"}
    events = [
        Entry(1, Persisted(machine=0, iteration=10)),
        Entry(2_500_000_000, PersistFailed.of_fields(failed)),
    ]
    assert persistent(events) == {
        "newest": 10,
        "failures": [{"time_s": 2.5, "machine": 1, "iteration": 20, "cause": "full"}],
    }
