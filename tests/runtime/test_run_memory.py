"""Whose memory it is: two runs of one name, what the dead leave, what is kept and what is freed."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from castor_configs.errors import InputError
from castor_lab.soak.trial import free_memory
from castor_policy.agents.job_spec import JobSpec
from castor_policy.placement import Placement
from castor_policy.recovery import plan_recovery
from castor_runtime.agent.memory import CheckpointMemory, RankLayout
from castor_runtime.arena import Arena, JobLock, PartLayout, remove_dead
from castor_runtime.arena.job_lock import lock_path, read_holders
from castor_runtime.arena.leftovers import (
    agents_with_checkpoints,
    kept_runs,
    mark_kept,
    newest_whole,
    segments,
)
from castor_runtime.arena.removal import free, remove_run
from castor_runtime.launcher.kept_memory import agents_to_resume, settle

OLD, NEW = "0123456789abcdef", "fedcba9876543210"
FINGERPRINT = bytes(16)
ROWS = ((0, 1), (1, 0))
LAYOUTS = {rank: RankLayout(rank, 4096, 256, 4096, "ab" * 16) for rank in range(2)}

HOLDER = """
import sys
from pathlib import Path
from castor_runtime.arena import JobLock
lock = JobLock("job", sys.argv[1], home="/runs/one", folder=Path(sys.argv[2]))
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="castor-test-", dir="/dev/shm"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def spec() -> Iterator[JobSpec]:
    """A job whose memory is in the machine's own shared memory; whatever is left of it goes."""
    made = JobSpec(
        f"t{secrets.token_hex(4)}", 2, 1, "group", ROWS, "train.py", run=OLD, started_ns=1
    )
    yield made
    for path in Path("/dev/shm").glob(f"castor-{made.job}*"):
        path.unlink()


@contextmanager
def holder(run: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, run, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def checkpoint(memory: CheckpointMemory, iteration: int, ranks: tuple[int, ...] = (0, 1)) -> None:
    for rank in ranks:
        writing = memory.replica(rank).begin(iteration, 3, None)
        writing.data[:] = bytes([iteration]) * 4096
        writing.commit(b"meta")


def leave(spec: JobSpec, iteration: int = 17) -> None:
    """Leave what agents leave that are killed: memory, and a lock that nobody holds."""
    for machine in range(2):
        memory = CheckpointMemory(spec, f"node-{machine}")
        memory.hold(machine, LAYOUTS)
        checkpoint(memory, iteration)
        memory.close(unlink=False)


def names(job: str) -> list[str]:
    return sorted(path.name for path in Path("/dev/shm").glob(f"castor-{job}*"))


# ---- two runs of one name ------------------------------------------------------------------------


def test_a_second_run_of_a_name_is_refused_with_the_firsts_process_and_folder(folder: Path) -> None:
    with holder(OLD, folder) as first:
        said = lock_path(folder, "job").read_text()
        with pytest.raises(InputError, match=rf"process {first.pid}, folder /runs/one, since 2"):
            JobLock("job", NEW, folder=folder)
        assert lock_path(folder, "job").read_text() == said
        with JobLock("job", OLD, folder=folder), JobLock("another", NEW, folder=folder):
            pass
        first.kill()
        first.wait()
        with JobLock("job", NEW, folder=folder) as taken:
            assert read_holders(lock_path(folder, "job"))[0].run == taken.run == NEW
    assert list(folder.iterdir()) == []


def test_whoever_lives_longest_is_named(folder: Path) -> None:
    with holder(OLD, folder) as first, holder(OLD, folder) as second:
        first.kill()
        first.wait()
        with pytest.raises(InputError, match=f"process {second.pid}, "):
            JobLock("job", NEW, folder=folder)


def test_of_many_runs_that_come_at_once_one_gets_the_name(folder: Path) -> None:
    """And the others are refused: none waits for ever, no two have it."""
    taken: list[JobLock] = []
    refused: list[InputError] = []

    def take(number: int) -> None:
        try:
            taken.append(JobLock("job", f"{number:016x}", folder=folder))
        except InputError as error:
            refused.append(error)

    for _ in range(5):
        threads = [threading.Thread(target=take, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(taken), len(refused)) == (1, 7)
        taken.pop().close()
        refused.clear()


# ---- an earlier run's memory ---------------------------------------------------------------------


def test_a_new_job_of_an_old_name_is_offered_nothing_of_the_old_one(spec: JobSpec) -> None:
    """Cases u7 and u8: all agents killed -9, then a new job of the name in a new store."""
    leave(spec)
    new = replace(spec, run=NEW, started_ns=2)
    held = {}
    memories = [CheckpointMemory(new, f"node-{machine}") for machine in range(2)]
    assert [name for name in names(spec.job) if OLD in name] == []
    assert len(memories[0].removed) == 4
    for machine, memory in enumerate(memories):
        memory.keep_only(None)
        memory.hold(machine, LAYOUTS)
        assert memory.holdings() == {0: (), 1: ()}
        checkpoint(memory, 1)
        held[machine] = memory.holdings()
    plan = plan_recovery(Placement("group", ROWS, ((0, 1),)), held, None)
    assert plan.iteration == 1
    assert bytes(memories[0].open(0, 1).data[:2]) == b"\1\1"
    for memory in memories:
        memory.close(unlink=True)
    assert names(spec.job) == []


def test_jobs_are_told_apart_also_where_nobody_named_their_runs(spec: JobSpec) -> None:
    leave(replace(spec, run=""))
    memory = CheckpointMemory(replace(spec, run="", started_ns=2), "node-0")
    memory.hold(0, LAYOUTS)
    assert memory.holdings() == {0: (), 1: ()}
    memory.close(unlink=True)


def test_an_agent_that_may_come_again_finds_its_memory_whoever_looked_for_garbage(
    spec: JobSpec,
) -> None:
    """Another job's launcher on this machine must not take it for dead (invariant 17)."""
    memory = CheckpointMemory(spec, "node-0", comes_again=True)
    memory.hold(0, LAYOUTS)
    checkpoint(memory, 17)
    memory.close(unlink=False)  # a kill -9, or a SIGTERM of this agent alone
    remove_dead()
    again = CheckpointMemory(spec, "node-0", comes_again=True)
    left = again.left()
    assert (left.holdings, left.layouts) == ({0: (17,), 1: (17,)}, LAYOUTS)
    again.hold(0, LAYOUTS)
    assert again.holdings() == {0: (17,), 1: (17,)}
    again.close(unlink=True)
    assert names(spec.job) == []


def test_memory_of_agents_under_a_dead_launcher_is_garbage(folder: Path) -> None:
    with Arena("job", OLD, "node-0", FINGERPRINT, folder=folder) as arena:
        arena.add_parts([PartLayout(0, 4096, 64, 4096)])
    assert remove_dead(folder) == [f"castor-job-{OLD}-node-0-r0"]
    assert list(folder.iterdir()) == []


# ---- kept memory ---------------------------------------------------------------------------------


def test_what_a_job_that_gave_up_keeps_is_found_by_its_run_and_passed_over_by_others(
    spec: JobSpec, tmp_path: Path
) -> None:
    leave(spec)
    kept = settle(spec, tmp_path, "failed", "the loss is NaN")
    assert kept is not None
    assert (kept.iteration, kept.run) == (17, OLD)
    assert kept.resume == f"castor resume {tmp_path}"
    assert kept.bytes >= 4 * 2 * 4096
    remove_dead()
    new = CheckpointMemory(replace(spec, run=NEW), "node-0")
    assert new.removed == []
    assert [(one.run, one.reason) for one in kept_runs() if one.job == spec.job] == [
        (OLD, "the loss is NaN")
    ]
    with pytest.raises(InputError, match=r"a run of job .* is alive on this machine"):
        JobLock(spec.job, OLD)
    new.close(unlink=True)
    assert agents_to_resume(spec) == (17, ["node-0", "node-1"])
    remove_run(spec.job, spec.run)
    assert names(spec.job) == []
    with pytest.raises(InputError, match=f"no whole checkpoint of run {OLD}"):
        agents_to_resume(spec)


@pytest.mark.parametrize("outcome", ["finished", "interrupted"])
def test_a_run_that_finished_or_was_interrupted_leaves_nothing(
    spec: JobSpec, tmp_path: Path, outcome: str
) -> None:
    leave(spec)
    mark_kept(spec.job, spec.run, str(tmp_path), "gave up before")
    assert settle(spec, tmp_path, outcome, "") is None
    assert names(spec.job) == []


@pytest.mark.parametrize("outcome", ["failed", "refused", ""])
def test_a_run_that_came_to_no_checkpoint_leaves_nothing(
    spec: JobSpec, tmp_path: Path, outcome: str
) -> None:
    memory = CheckpointMemory(spec, "node-0")
    memory.hold(0, LAYOUTS)
    memory.close(unlink=False)
    assert settle(spec, tmp_path, outcome, "why") is None
    assert names(spec.job) == []


def test_an_agent_keeps_only_what_is_complete(spec: JobSpec) -> None:
    memory = CheckpointMemory(spec, "node-0")
    memory.hold(0, LAYOUTS)
    assert not memory.keep("gave up")
    memory.replica(0).begin(1, 1, None)
    assert not memory.keep("gave up")
    checkpoint(memory, 2, ranks=(1,))
    assert memory.keep("gave up")
    memory.close(unlink=False)
    held = agents_with_checkpoints(spec.job, spec.run)
    assert held == {"node-0": {1: (2,)}}
    assert newest_whole(held, 2) == 0


# ---- castor clean --------------------------------------------------------------------------------


def test_clean_frees_what_is_kept_or_dead_and_touches_nothing_that_lives(folder: Path) -> None:
    for job, run in (("job", OLD), ("gone", OLD)):
        with Arena(job, run, "node-0", FINGERPRINT, folder=folder) as arena:
            arena.add_parts([PartLayout(0, 4096, 64, 4096)])
            arena.touch()
        mark_kept(job, run, "/runs/one", "gave up", folder)
    with holder(NEW, folder) as living:
        with Arena("job", NEW, "node-0", FINGERPRINT, folder=folder) as arena:
            arena.add_parts([PartLayout(0, 4096, 64, 4096)])
            freed = free(folder=folder)
            assert [(one.job, one.run, one.kept) for one in freed] == [
                ("gone", OLD, True),
                ("job", OLD, True),
            ]
            assert all(one.bytes > 8192 for one in freed)
            assert [one.run for one in segments(folder)] == [NEW]
        with pytest.raises(InputError, match=rf"job job is alive .*process {living.pid}, folder"):
            free("job", folder)
        with pytest.raises(InputError, match="no checkpoint memory of a job 'gone'"):
            free("gone", folder)
        living.kill()
        living.wait()
    assert [(one.job, one.run, one.kept) for one in free("job", folder)] == [("job", NEW, False)]
    assert free(folder=folder) == []
    assert list(folder.iterdir()) == []


def test_the_soak_frees_what_a_job_that_gave_up_kept(spec: JobSpec, tmp_path: Path) -> None:
    leave(spec)
    assert settle(spec, tmp_path, "failed", "5 attempts") is not None
    assert any(name.endswith(".kept") for name in names(spec.job))
    free_memory(spec.job)
    assert names(spec.job) == []
    free_memory(spec.job)  # nothing is there
