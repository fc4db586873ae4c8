"""Pipeline parallelism: the bubble of "one forward, one backward", and the idle spans it leaves."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castor_policy.chunk_schedule import Link
from castor_sim.iteration.engine import run_iteration
from castor_sim.iteration.pipeline import pipeline_tasks
from castor_sim.iteration.tasks import Kind, Lane, Task
from castor_sim.iteration.timeline import idle_spans
from castor_sim.iteration.workload import Block, Speeds

deterministic = settings(
    derandomize=True, deadline=None, max_examples=3 * settings.default.max_examples // 5
)


def stages_of(
    stages: int, micro_batches: int, *, flop: int = 4, message_bytes: int = 0, gpus: int = 1
) -> tuple[Task, ...]:
    speeds = Speeds(
        flop_per_s=10**9,
        collective=Link(0, 8 * 10**9),
        link=Link(0, 8 * 10**9),
        check_ns=0,
        update_ns=0,
    )
    blocks = [Block(f"layer {index}", 0, 0, flop, recomputed=True) for index in range(stages)]
    return pipeline_tasks(
        blocks,
        speeds,
        stages=stages,
        gpus=gpus,
        micro_batches=micro_batches,
        message_bytes=message_bytes,
    )


@deterministic
@given(stages=st.integers(1, 9), micro_batches=st.integers(1, 12), flop=st.integers(1, 1000))
def test_the_bubble_is_p_minus_1_micro_batches(stages: int, micro_batches: int, flop: int) -> None:
    run = run_iteration(stages_of(stages, micro_batches, flop=flop), machines=stages)
    # A micro-batch takes f forward and 3 f back, the re-computation included.
    assert run.end_ns == (micro_batches + stages - 1) * 4 * flop


@deterministic
@given(stages=st.integers(2, 6), micro_batches=st.integers(1, 8), size=st.integers(1, 5))
def test_each_stage_does_its_work_once_and_its_network_is_idle_else(
    stages: int, micro_batches: int, size: int
) -> None:
    tasks = stages_of(stages, micro_batches, message_bytes=size)
    run = run_iteration(tasks, machines=stages)
    for stage in range(stages):
        own = [task for task in tasks if task.machine == stage]
        count = {kind: sum(task.kind is kind for task in own) for kind in Kind}
        assert count[Kind.FORWARD] == count[Kind.BACKWARD] == micro_batches
        # Forward to the next stage but from the last, back to the one before but from the first.
        assert count[Kind.SEND] == micro_batches * ((stage < stages - 1) + (stage > 0))
        assert count[Kind.UPDATE] == 1
        busy_ns = sum(task.duration_ns for task in own if task.lane is Lane.NETWORK)
        update_ns = next(
            i.start_ns for i in run.intervals if i.machine == stage and i.kind == Kind.UPDATE
        )
        spans = idle_spans(tasks, run.intervals, stage)
        assert all(span.idle_ns >= 0 for span in spans)
        assert sum(span.idle_ns for span in spans) == update_ns - busy_ns


def test_a_stage_is_split_over_the_gpus_of_its_machine() -> None:
    whole = run_iteration(stages_of(2, 3, flop=8), machines=2).end_ns
    assert run_iteration(stages_of(2, 3, flop=8, gpus=4), machines=2).end_ns * 4 == whole


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="give each stage a block"):
        stages_of(0, 1)
    with pytest.raises(ValueError, match="micro_batches"):
        stages_of(2, 0)
