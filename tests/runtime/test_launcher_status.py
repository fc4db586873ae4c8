"""`castor status` says how far a job is, who was held responsible, who is set aside, and why."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from castor.commands.status import _shown, why
from castor_policy.agents.agent_report import AgentReport, State
from castor_policy.agents.evidence import Culprit
from castor_policy.agents.history import PastFailure, SetAside
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Phase, Plan
from castor_policy.placement import place
from castor_runtime.launcher.job_view import JobView
from castor_runtime.launcher.status import status_document

RUN = "0123456789abcdef"
CAUSE = "rank 1 was killed by signal 9"
SAW = "machine 0: rank 0 exited with code 1: closed by peer"


def view(**fields: object) -> JobView:
    rows = place("mixed", 2, 2).replicas
    spec = JobSpec("j", 2, 1, "group", rows, "t.py", run=RUN)
    plan = Plan(3, 7, Phase.LOAD, ("node-0", "spare-0"), ("node-0.1", "spare-0.1"), **fields)
    names = ("node-0", "spare-0", "node-1", "spare-1")
    reports = {
        name: AgentReport(name, f"{name}.1", False, "", 3, State.RUNNING) for name in names[:2]
    }
    reports |= {name: AgentReport(name, f"{name}.1", True, "") for name in names[2:]}
    return JobView("j", spec, plan, "node-0", 7, reports)


def test_from_the_store_alone_it_is_known_what_is_complete_and_what_memory_is_taken() -> None:
    told = view()
    for name in ("node-0", "spare-0"):
        # Gathered at iteration 4; one agent has not heard yet that 9 is complete.
        reached = {"complete": 9 if name == "node-0" else 8, "memory_bytes": 1000, "iteration": 9}
        told.reports[name] = replace(
            told.reports[name], holdings={"0": (4,), "1": (4,)}, redundant=True, **reached
        )
    document = status_document(told, None)
    assert document["complete_iteration"] == 9
    assert [shard["holders"] for shard in document["shards"]] == [{"0": 9, "1": 8}] * 2
    assert [one["memory_bytes"] for one in document["machines"]] == [1000, 1000]
    assert document["degraded"] is False


def test_after_the_end_the_store_alone_knows_how_far_the_job_came() -> None:
    told = view(reached=883)
    told.reports.clear()
    assert told.plan is not None
    told.plan = replace(told.plan, phase=Phase.FINISHED)
    assert status_document(told, None)["iteration"] == 883


def table_of(told: JobView) -> str:
    text = io.StringIO()
    Console(file=text, width=120).print(_shown(status_document(told, None)))
    return " ".join(text.getvalue().replace("│", " ").split())


def test_the_failure_domain_of_a_machine_is_shown_where_agents_gave_one() -> None:
    told = view()
    assert "domain" not in table_of(told)
    told.reports["spare-0"] = replace(told.reports["spare-0"], domain="rack-7")
    machines = status_document(told, None)["machines"]
    assert [one["domain"] for one in machines] == ["", "rack-7"]
    assert " domain " in table_of(told)
    assert "1 spare-0 rack-7 held running" in table_of(told)
    assert "0 node-0 - held running" in table_of(told)


def test_a_machine_that_is_set_aside_is_listed_with_the_reason() -> None:
    aside = (SetAside("node-1", "node-1.1", f"failed 3 times in 90 s, at last: {CAUSE}"),)
    document = status_document(view(aside=aside), None)
    reasons = {one["agent"]: one["set_aside"] for one in document["standbys"]}
    assert reasons == {"node-1": aside[0].reason, "spare-1": ""}
    (line,) = why(document)
    assert line.startswith("node-1 is set aside until its agent is started again: failed 3 times")


def test_a_new_life_of_an_agent_is_not_set_aside() -> None:
    aside = (SetAside("node-1", "node-1.0", "why"),)
    document = status_document(view(aside=aside), None)
    assert [one["set_aside"] for one in document["standbys"]] == ["", ""]


def test_who_failed_is_named_and_what_others_saw_stands_apart() -> None:
    culprit = Culprit(1, 1, "node-1", "signal", CAUSE)
    past = (PastFailure("node-1", 10.0, CAUSE), PastFailure("node-1", 20.0, CAUSE))
    document = status_document(
        view(culprits=(culprit,), seen=(SAW,), failures=past, attempts=2), None
    )
    assert document["last_failure"]["culprits"][0]["machine"] == 1
    assert why(document) == [
        f"last failure: machine 1: {CAUSE}",
        f"  seen beside it: {SAW}",
        "2 attempts in a row completed no iteration",
        f"node-1 failed 2 times in the last hour, at last: {CAUSE}",
    ]
    unknown = status_document(view(seen=(SAW,)), None)
    assert why(unknown)[0] == "last failure: what failed is not known"
