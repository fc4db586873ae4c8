"""`castor status` says how far a job is, who was held responsible, who is set aside, and why."""

from __future__ import annotations

import io
import re
from dataclasses import replace

from rich.console import Console

from castor_policy.agents.agent_report import AgentReport, State
from castor_policy.agents.evidence import Culprit
from castor_policy.agents.history import PastFailure, SetAside
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Phase, Plan
from castor_policy.placement import place
from castor_runtime.launcher.job_view import JobView
from castor_runtime.launcher.status import status_document
from castor_runtime.launcher.status_view import Pace, screenful, status_view, why

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
    Console(file=text, width=120).print(status_view(status_document(told, None)))
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


# ---- with --watch: as much as fits, the sick first ---------------------------------------------


def cluster_of(machines: int, standbys: int = 2) -> JobView:
    """A job that trains: one machine lost, one loading, one without its replicas, one set aside."""
    rows = place("group", machines, 2).replicas
    spec = JobSpec("gpt2-175b", machines, 8, "group", rows, "t.py", run=RUN)
    names = [f"node-{number:04}.rack-{number // 16}" for number in range(machines + standbys)]
    lives = [f"{name}.1" for name in names]
    aside = SetAside(names[-1], lives[-1], "its trainers failed 3 times")
    plan = Plan(7, 9, Phase.LOAD, tuple(names[:machines]), tuple(lives[:machines]), aside=(aside,))
    reports = {}
    for number, (name, life) in enumerate(zip(names, lives, strict=True)):
        trains = number < machines
        reports[name] = AgentReport(
            name,
            life,
            not trains,
            f"10.0.0.1:{number}",
            7 if trains else 0,
            State.RUNNING if trains else State.IDLE,
            iteration=12_345 if trains else 0,
            complete=12_345 if trains else 0,
            redundant=trains and number != 1,
            memory_bytes=64_000_000_000 if trains else 0,
            domain=f"rack-{number // 16}",
        )
    del reports[names[machines - 1]]
    reports[names[2]] = replace(reports[names[2]], state=State.LOADING)
    return JobView("gpt2-175b", spec, plan, names[0], 9, reports)


def screen(view: JobView, height: int, pace: str = "") -> list[str]:
    text = io.StringIO()
    console = Console(file=text, width=80, height=height, color_system=None)
    console.print(screenful(status_document(view, None), (80, height), pace))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= height
    return lines


def test_five_machines_are_all_shown_the_sick_first() -> None:
    lines = screen(cluster_of(6, standbys=1), 24, "1.35 s an iteration")
    text = "\n".join(lines)
    assert "1.35 s an iteration" in text
    assert "DEGRADED: replicas are missing" in text
    rows = [line.split() for line in lines if line.startswith(tuple("012345-"))]
    assert [row[0] for row in rows] == ["5", "-", "2", "1", "0", "3", "4"]
    assert rows[0][1:4] == ["node-0005.rack-0", "-", "lost"]
    assert rows[3][3:] == ["running", "!", "12345", "64", "GB", "12345"]


def test_of_a_thousand_machines_the_sick_are_shown_and_the_rest_is_counted() -> None:
    lines = screen(cluster_of(1000), 24)
    rows = [line.split() for line in lines if re.match(r"(\d+|-) +node-", line)]
    assert [row[0] for row in rows] == ["999", "-", "2", "1"]
    text = " ".join(" ".join(lines).split())
    assert (
        "1002 agents and empty places: 1 running, replicas missing, 1 loading, 1 lost, "
        "1 standby, 1 set aside, 997 running; the 4 that need a look are above" in text
    )
    view = cluster_of(1000)
    for number in range(500):
        del view.reports[f"node-{number:04}.rack-{number // 16}"]
    lines = screen(view, 24)
    assert "of 502 that need a look are above" in " ".join(" ".join(lines).split())
    assert sum("lost" in line.split()[2:4] for line in lines) >= 3
    well = cluster_of(1000, standbys=0)
    well.reports = {
        name: replace(report, state=State.RUNNING, redundant=True)
        for name, report in cluster_of(1001, standbys=0).reports.items()
    }
    assert well.plan is not None
    well.plan = replace(well.plan, aside=())
    assert "1000 running; none of them needs a look" in " ".join(screen(well, 10))


def test_how_fast_it_goes_is_known_after_two_looks_and_anew_after_a_failure() -> None:
    pace = Pace()

    def look(at_s: float, iteration: int, generation: int = 1) -> str:
        return pace.look({"generation": generation, "iteration": iteration}, at_s)

    assert look(0.0, 10) == ""
    assert look(1.0, 10) == ""
    assert look(4.0, 12) == "2 s an iteration"
    assert look(5.0, 13) == "1.7 s an iteration"
    assert look(6.0, 13) == "1.7 s an iteration"
    assert look(30.0, 11, generation=2) == ""
    assert look(31.0, 12, generation=2) == "1 s an iteration"
