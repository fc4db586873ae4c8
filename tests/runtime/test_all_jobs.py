"""`castor jobs` says each job's state in a word, and reads nothing that is no job."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from castor_policy.agents.agent_report import AgentReport, State
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.store_keys import accounts_prefix, spec_key
from castor_policy.agents.wish import Wish, WishKind
from castor_policy.store import Put, Txn
from castor_runtime.launcher.accounts import Accounts
from castor_runtime.launcher.all_jobs import job_document, read_jobs
from castor_runtime.launcher.job_view import JobView
from castor_runtime.launcher.told_result import told_result
from castor_sim.model_store import ModelStore
from castor_sim.store_model import StoreModel

SPEC = JobSpec("j", 2, 1, "group", ((0, 1), (1, 0)), "train.py", started_ns=5_000_000_000)
LOAD = Plan(2, 1, Phase.LOAD, ("a", "b"), ("1", "1"), iteration=7)


def view(plan: Plan | None, *alive: str, redundant: bool = True, wish: str = "") -> JobView:
    reports = {
        name: AgentReport(name, "1", False, "", 2, State.RUNNING, iteration=9, redundant=redundant)
        for name in alive
    }
    wishes = {wish: Wish(wish)} if wish else {}
    return JobView("j", SPEC, plan, reports=reports, wishes=wishes)


def over(phase: Phase) -> Plan:
    return replace(LOAD, phase=phase, reached=30, reason="why")


@pytest.mark.parametrize(
    ("of", "state"),
    [
        (JobView("j", set_aside={"k": "of another version"}), "unreadable"),
        (view(None), "off"),
        (view(None, "a"), "starting"),
        (view(LOAD, "a", "b"), "training"),
        (view(LOAD, "a", "b", redundant=False), "degraded"),
        (view(LOAD, "a", "c"), "degraded"),
        (view(replace(LOAD, phase=Phase.GATHER), "a"), "gathering"),
        (view(LOAD, "a", "b", wish=WishKind.DRAIN), "draining"),
        (view(LOAD, "a", "b", wish=WishKind.CHECKPOINT), "stopping"),
        (view(LOAD), "off"),
        (view(over(Phase.FINISHED)), "finished"),
        (view(over(Phase.FAILED), "a"), "failed"),
        (view(over(Phase.STOPPED)), "stopped"),
    ],
)
def test_the_state_of_a_job(of: JobView, state: str) -> None:
    assert job_document(of)["state"] == state


def test_machines_and_standbys_are_counted() -> None:
    document = job_document(view(LOAD, "a", "c", "d"), lambda: 65_000_000_000)
    assert (document["alive"], document["machines"], document["standbys"]) == (1, 2, 2)
    assert (document["iteration"], document["age_s"]) == (9, 60.0)
    assert job_document(view(over(Phase.FINISHED)))["iteration"] == 30


@pytest.mark.parametrize(
    ("plan", "outcome", "reason", "iterations"),
    [
        (None, "running", "", 9),
        (LOAD, "running", "", 9),
        (over(Phase.FINISHED), "finished", "", 30),
        (over(Phase.FAILED), "failed", "why", 30),
        (over(Phase.STOPPED), "stopped", "why", 30),
    ],
)
def test_a_result_has_the_outcome_that_the_plan_tells(
    plan: Plan | None, outcome: str, reason: str, iterations: int
) -> None:
    result = told_result(view(plan, "a"), Accounts(SPEC))
    assert (result.outcome, result.reason, result.iterations) == (outcome, reason, iterations)
    assert (result.kept_memory is not None) == (outcome == "failed")
    if result.kept_memory is not None:
        assert result.kept_memory["iteration"] == 30
        assert result.kept_memory["resume"] == f"castor resume {SPEC.job}"


def test_what_agents_have_told_is_no_job() -> None:
    async def names() -> list[str]:
        store = ModelStore(StoreModel(), time.monotonic)
        puts = {
            spec_key("one"): SPEC.to_json(),
            spec_key("two"): "{}",
            accounts_prefix("gone") + "a": "x",
            "/castor/three/refused/a": '{"agent":"a","host":"h","reason":"r","since_ns":1}',
        }
        await store.transact(Txn((), tuple(Put(key, value) for key, value in puts.items())))
        return [found.job for found in await read_jobs(store)]

    assert asyncio.run(names()) == ["one", "two"]
