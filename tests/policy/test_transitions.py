"""The agents' machines as tables: what is drawn is what may happen, and nothing else does."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from castor_policy.agents.events import Finalised, PlanChanged, Tick, TrainerEnded, WorkerEvent
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.life import check_worker
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.transitions import (
    ROOT,
    WORKER,
    ForbiddenTransitionError,
    Standing,
    Table,
    check,
    diagram,
)
from castor_policy.agents.worker import Worker

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"


@pytest.mark.parametrize("table", [WORKER, ROOT], ids=["worker", "root"])
def test_the_page_draws_the_table(table: Table) -> None:
    assert f"```mermaid\n{diagram(table)}\n```" in PAGE.read_text(encoding="utf-8")


def test_a_way_that_no_table_has_is_refused() -> None:
    check(WORKER, Standing.RUNNING, Finalised(1, 9), Standing.FINISHED)
    with pytest.raises(ForbiddenTransitionError, match="from running to finished by Tick"):
        check(WORKER, Standing.RUNNING, Tick(), Standing.FINISHED)
    with pytest.raises(ForbiddenTransitionError, match="from idle to running"):
        check(WORKER, Standing.IDLE, Finalised(1, 9), Standing.RUNNING)


def test_a_root_may_not_take_back_an_end() -> None:
    plan = Plan(1, 5, Phase.FINISHED, ("a",), ("a.1",))
    check(ROOT, Phase.LOAD, PlanChanged(plan, 3), Phase.FINISHED)
    with pytest.raises(ForbiddenTransitionError, match="from finished to gather"):
        check(ROOT, Phase.FINISHED, PlanChanged(plan, 3), Phase.GATHER)


def test_a_worker_has_a_function_for_every_event() -> None:
    assert Worker._takes.events() == set(get_args(WorkerEvent))


def test_a_worker_that_loses_count_of_its_trainers_is_found_out() -> None:
    job = JobSpec("j", 2, 1, "group", ((0, 1), (1, 0)), "t.py")
    worker = Worker(job, "a", "a.1", "a:1", False, 0.0)
    worker.plan = Plan(1, 5, Phase.LOAD, ("a", "b"), ("a.1", "b.1"))
    worker.generation, worker.machine = 1, 0
    worker._ended = {1}
    with pytest.raises(AssertionError, match="trainers of other ranks"):
        check_worker(worker, Standing.GATHERING, TrainerEnded(1, 1, 0))
