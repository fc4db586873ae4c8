"""What a trainer shows of itself: collectives begun, busy sections; and what the watchdog sees."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from castor_policy.agents.events import TrainerHung, TrainersStanding, WorkerEvent
from castor_policy.agents.job_spec import JobSpec
from castor_policy.membership import WatchLimits
from castor_runtime.agent.watchdog import Watchdog
from castor_runtime.arena import ControlBlock, TrainerPhase
from castor_runtime.trainer.agent_link import Heartbeat
from castor_runtime.trainer.busy import BusySections
from castor_runtime.trainer.checkpointer import Checkpointer
from castor_runtime.trainer.collective_count import CollectiveCount
from castor_runtime.trainer.tensor_state import TensorState

SPEC = JobSpec(
    "job",
    1,
    1,
    "group",
    ((0,),),
    "train.py",
    limits=WatchLimits(hang_s=0.5, stall_s=0.5, startup_s=0.5),
)


@pytest.fixture
def control() -> Iterator[ControlBlock]:
    block = ControlBlock.create(f"t{secrets.token_hex(4)}", "0" * 16, "node-0", 1)
    yield block
    block.close(unlink=True)


@pytest.fixture
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_collectives_of_any_library_are_counted_and_castors_own_are_not(
    control: ControlBlock, alone: None
) -> None:
    line = control.rank(0)
    own = dist.new_group(backend="gloo")
    counting = CollectiveCount(line)
    assert isinstance(own, dist.ProcessGroup)
    counting.leave_out(own)
    dist.all_reduce(torch.ones(1))
    dist.barrier()
    dist.all_reduce(torch.ones(1), group=own)
    counting.update()
    before = line.collectives
    assert before > 0
    assert line.shared_collectives == before
    work = dist.broadcast(torch.ones(1), 0, async_op=True)
    counting.update()
    assert line.collectives == before + 1  # begun counts: one that never ends has been counted
    if work is not None:
        work.wait()


def test_without_process_groups_there_is_nothing_to_count(control: ControlBlock) -> None:
    CollectiveCount(control.rank(0)).update()
    assert control.rank(0).collectives == 0


def test_what_cannot_be_counted_does_not_stop_the_heart(control: ControlBlock) -> None:
    """A trainer that destroys its groups while they are counted is no trainer that hangs."""

    def fails() -> None:
        raise ValueError("Default process group has not been initialized")

    heart = Heartbeat(control.rank(0), fails)
    deadline_s = time.monotonic() + 30
    while control.rank(0).heartbeat < 3 and time.monotonic() < deadline_s:
        time.sleep(0.02)
    heart.stop()
    assert control.rank(0).heartbeat >= 3
    time.sleep(0.1)  # the last beat is over before the control block goes


def test_a_busy_section_ends_with_its_block_and_may_be_nested(control: ControlBlock) -> None:
    line = control.rank(0)
    busy = BusySections(line)
    with busy(60.0):
        outer = line.busy_until_ns
        with busy(1.0):
            assert line.busy_until_ns == outer  # the longer one counts
        with busy(600.0):
            assert line.busy_until_ns > outer
        with pytest.raises(RuntimeError), busy(600.0):
            raise RuntimeError
        assert line.busy_until_ns == outer
    assert line.busy_until_ns == 0


def test_outside_castor_busy_does_nothing() -> None:
    tensor = torch.zeros(2)
    with pytest.warns(RuntimeWarning, match="not started by castor"):
        checkpointer = Checkpointer(TensorState({"tensor": tensor}))
    with checkpointer.busy("evaluation"):
        tensor += 1
    with pytest.raises(ValueError, match=r"busy\('evaluation'\): limit_s must be above 0"):
        checkpointer.busy("evaluation", limit_s=0.0)


def watched(control: ControlBlock, pid: int, *, seconds: float, beats: bool) -> list[WorkerEvent]:
    seen: list[WorkerEvent] = []

    async def watch() -> None:
        watchdog = Watchdog(SPEC, control, seen.append)
        watchdog.watch(1, {0: pid})
        for _ in range(round(seconds / 0.05)):
            await asyncio.sleep(0.05)
            control.rank(0).heartbeat += int(beats)
            if any(isinstance(event, TrainerHung) for event in seen):
                break
        watchdog.stop()

    asyncio.run(watch())
    return seen


def test_a_trainer_stopped_before_its_checkpointer_exists_is_found(control: ControlBlock) -> None:
    """Case u9: it imports, or builds its model, and has no heartbeat yet."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        os.kill(process.pid, signal.SIGSTOP)
        seen = watched(control, process.pid, seconds=20, beats=False)
        process.kill()
    assert TrainerHung(1, 0, "stood still for 0.5 s") in seen


@pytest.mark.long
@pytest.mark.parametrize("life", ["none", "busy", "collectives"])
def test_a_trainer_that_ends_no_iteration_stands_unless_it_shows_life(
    control: ControlBlock, life: str
) -> None:
    line = control.rank(0)
    line.phase, line.heartbeat, line.iteration, line.shared_collectives = (
        TrainerPhase.TRAINING,
        1,
        4,
        9,
    )
    line.busy_until_ns = 2**63 if life == "busy" else 0
    seen: list[WorkerEvent] = []

    async def watch() -> None:
        watchdog = Watchdog(SPEC, control, seen.append)
        watchdog.watch(1, {0: os.getpid()})
        for _ in range(60):
            await asyncio.sleep(0.05)
            line.heartbeat += 1
            line.collectives += int(life == "collectives")
        watchdog.stop()

    asyncio.run(watch())
    stood = [event for event in seen if isinstance(event, TrainersStanding)]
    expected = [TrainersStanding(1, {0: (3, 4, 9)})] if life == "none" else []
    assert stood == expected
