"""What a person reads: lines with their times, few of them, and the parts of a recovery."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from castor_policy.agents.admission import Refusal, refused_prefix
from castor_policy.agents.agent_report import AgentReport, State
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Plan
from castor_policy.agents.store_keys import agents_prefix, plan_key, root_key, spec_key
from castor_policy.store import StoreEvent
from castor_records.events.event import Entry, Event
from castor_records.events.failures import Detected, Failed
from castor_records.events.training import CheckpointCompleted, IterationEnded, Warned
from castor_records.recoveries import Recovery
from castor_records.result import Result
from castor_runtime.launcher.job_view import JobView
from castor_runtime.launcher.result_file import warned
from castor_runtime.launcher.screen import Screen, print_summary
from castor_runtime.launcher.status import status_document


def at(time_s: float, kind: type[Event], **fields: Any) -> Entry[Event]:
    return Entry(round(time_s * 1e9), kind.of_fields(fields))


def shown(events: list[Entry[Event]], *, quiet: bool = False) -> list[str]:
    text = io.StringIO()
    screen = Screen(Console(file=text, width=60), 2, quiet=quiet)
    for event in events:
        screen.event(event)
    screen.close()
    return [line.strip() for line in text.getvalue().splitlines()]


def test_iterations_are_shown_once_a_second_and_before_whatever_follows() -> None:
    events = [
        at(i / 10, IterationEnded, generation=1, rank=0, iteration=i, loss=1 / i)
        for i in range(1, 16)
    ]
    events.insert(5, at(0.55, CheckpointCompleted, generation=1, rank=0, iteration=4))
    events.append(at(1.55, IterationEnded, generation=1, rank=1, iteration=15, loss=0.0))
    events.append(at(1.6, Failed, target="rank:1", failure="software", iteration=15))
    events.append(at(1.7, Detected, machine=0, agent="node-0", cause="x" * 500 + "\nmore"))
    lines = shown(events)
    assert lines[:4] == [
        "0.100 s  iteration 1, loss 1.0000",
        "1.100 s  iteration 11, loss 0.0909, checkpoint 4",
        "1.500 s  iteration 15, loss 0.0667, checkpoint 4",
        "1.600 s  FAILURE injected: rank:1 (software), iteration 15",
    ]
    assert lines[4].startswith("1.700 s  detected: machine 0 (node-0): xxx")
    assert lines[4].endswith("...")
    assert shown(events, quiet=True) == lines[3:]


def test_a_warning_is_shown_once_and_whole_also_where_little_is_said() -> None:
    said = "the learning-rate schedule CosineAnnealingLR is not checkpointed: " + "x" * 200
    events = [at(0.1 * rank, Warned, generation=1, rank=rank, message=said) for rank in (0, 1)]
    events.append(at(0.3, Warned, generation=1, rank=1, message="another"))
    expected = [f"0.000 s  WARNING: {said}", "0.300 s  WARNING: another"]
    assert shown(events) == shown(events, quiet=True) == expected
    assert warned(events) == [
        {"time_s": 0.0, "ranks": [0, 1], "message": said},
        {"time_s": 0.3, "ranks": [1], "message": "another"},
    ]


def test_a_recovery_is_one_line_and_the_summary_fits_80_columns() -> None:
    seconds: dict[str, float | None] = {
        "detection": 5.0,
        "interrupted": 0.0,
        "replacement": 0.25,
        "planning": 0.01,
        "retrieval": 0.5,
        "restart": 1.0,
        "first_iteration": 0.3,
        "total": 7.06,
    }
    recovery = Recovery(
        2, (2,), "hardware", "lease", (1,), {0: "own_memory", 1: "peer:node-0"}, 9, 0, seconds
    )
    text = io.StringIO()
    screen = Screen(Console(file=text, width=60), 1)
    screen.recovery(10**9, recovery)
    assert text.getvalue().strip() == (
        "1.000 s  recovery (hardware) took 7.06 s: iteration 9 from own_memory, peer:node-0, 0 "
        "lost; detection 5.000, replacement 0.250, planning 0.010, retrieval 0.500, "
        "restart 1.000, first iteration 0.300 s"
    )
    seconds["interrupted"] = 2.5
    unfinished = Recovery(3, (3,), "software", "?", (0, 10), {}, None, None, dict.fromkeys(seconds))
    result = Result(
        job="j" * 32,
        outcome="finished",
        iterations=30,
        wall_s=93.0,
        final_state_sha256="ab" * 32,
        recoveries=(recovery, unfinished),
    )
    summary = io.StringIO()
    print_summary(Console(file=summary, width=80), result)
    lines = summary.getvalue().splitlines()
    assert any(
        " ".join(line.split()).startswith("machine 1 9 0 5.000 2.500 0.250") for line in lines
    )
    assert any(line.endswith("ab" * 32) for line in lines)
    assert "1 min 33 s" in summary.getvalue()
    assert any(line.startswith("trainer 0,10 ") for line in lines)
    assert not any("…" in line for line in lines)


def test_the_table_says_who_fills_which_machine() -> None:
    view = JobView("j")
    plan = Plan(2, 7, "load", ("node-0", ""), ("1", ""))
    report = AgentReport("node-0", "1", False, "h:1", 2, State.RUNNING)
    for key, value in (
        (plan_key("j"), plan.to_json()),
        (root_key("j"), "node-0"),
        (agents_prefix("j") + "node-0", report.to_json()),
        (agents_prefix("j") + "spare-0", AgentReport("spare-0", "1", True, "h:2").to_json()),
        (agents_prefix("j") + "gone", AgentReport("gone", "1", True, "h:2").to_json()),
        (agents_prefix("j") + "gone", None),
    ):
        view.apply(StoreEvent(key, value, 7 if value else 0, 9))
    assert (view.root, view.term, sorted(view.reports)) == ("node-0", 7, ["node-0", "spare-0"])
    text = io.StringIO()
    console = Console(file=text, width=100, force_terminal=True, color_system=None)
    screen = Screen(console, 1)
    screen.event(at(1, IterationEnded, generation=1, rank=0, iteration=12, loss=0.5))
    screen.table(view, [])
    screen.close()
    table = " ".join(text.getvalue().split())
    assert "node-0 (root) │ running (degraded) │ 12 │ 0.5000" in table
    assert "being replaced" in table
    assert "spare-0 │ idle" in table


def test_the_status_names_who_was_refused_and_what_training_waits_for() -> None:
    view = JobView("j")
    refusal = Refusal("spare-0", "far", "is not the secret of this job", 5)
    waiting = Plan(2, 7, "gather", ("a", "b"), ("1", "1"), waits_for="a changed script holds")
    spec = JobSpec("j", 2, 1, "group", ((0, 1), (1, 0)), "t.py", run="0123456789abcdef")
    for key, value in (
        (spec_key("j"), spec.to_json()),
        (plan_key("j"), waiting.to_json()),
        (refused_prefix("j") + "spare-0", refusal.to_json()),
    ):
        view.apply(StoreEvent(key, value, 7, 9))
    document = status_document(view, None)
    assert document["waits_for"] == "a changed script holds"
    assert document["refused"] == [
        {"agent": "spare-0", "host": "far", "reason": "is not the secret of this job"}
    ]
    assert document["standbys"] == []  # it is none
    view.apply(StoreEvent(refused_prefix("j") + "spare-0", None, 0, 10))
    assert status_document(view, None)["refused"] == []
