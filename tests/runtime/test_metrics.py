"""What agents tell at /metrics, /healthz and /readyz: real agents in one process are scraped."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from castor_lab.one_process import Cluster, TrainerThread, small_job
from castor_lab.one_process.failures import lose, settled
from castor_policy.agents.agent_report import AgentReport, State
from castor_policy.agents.history import SetAside
from castor_policy.agents.plan import Phase, Plan
from castor_records.events.event import Event
from castor_records.events.failures import Resumed
from castor_records.events.storing import StoreBack, StoreLost
from castor_records.events.training import CheckpointCompleted, IterationEnded
from castor_runtime.metrics import AgentMetrics, Readings
from castor_runtime.metrics.families import BY_NAME, COUNTER, FAMILIES
from castor_runtime.metrics.tally import Tally

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 60.0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(small_job(), tmp_path, iterations=8, standby=1, metrics=True)
    yield made
    made.remove_memory()


def ask(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def address(cluster: Cluster, name: str) -> str:
    return cluster.agent(name)._metrics.address


def wait_until(what: Any) -> Any:
    give_up_s = time.monotonic() + WAIT_S
    while time.monotonic() < give_up_s:
        if found := what():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not come to be")


def values(text: str) -> dict[tuple[str, ...], float]:
    """A scrape as {(name, own labels' values...): value}."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k not in ("training", "agent")}
            found[sample.name, *labels.values()] = sample.value
    return found


def test_a_machine_is_lost_and_those_who_watch_see_it(
    cluster: Cluster, needs: Callable[..., None]
) -> None:
    scrapes: dict[str, Any] = {}

    def loading(trainer: TrainerThread) -> None:
        where = address(cluster, "node-1")
        scrapes["loading"] = wait_until(
            lambda: found if "iteration 4" in (found := ask(where, "/readyz"))[1] else None
        )

    def late(trainer: TrainerThread) -> None:
        wait_until(lambda: ask(address(cluster, "node-0"), "/readyz")[0] == 200)
        settled(trainer)
        for path in ("/readyz", "/healthz", "/nothing"):
            scrapes[path] = ask(address(cluster, "node-0"), path)
        for name in ("node-0", "node-4"):
            scrapes[name] = ask(address(cluster, name), "/metrics")[1]

    cluster.at(2, 4, lose(cluster, "node-3", memory=True, comes_back=False))
    for generation in (2, 3):
        cluster.at_load(1, generation, loading)
    cluster.at(0, 7, late)
    outcome = cluster.run()
    assert outcome.iteration == 8
    assert scrapes["loading"][0] == 503
    assert re.match("recovering: generation [23] loads iteration 4 after: ", scrapes["loading"][1])
    assert scrapes["/readyz"] == (200, "ok\n")
    assert scrapes["/healthz"] == (200, "ok\n")
    assert scrapes["/nothing"][0] == 404

    found = values(scrapes["node-0"])
    assert found["castor_iteration",] == 7
    assert found["castor_iterations_total",] == 7
    assert found["castor_iterations_redone_total",] == 0
    assert found["castor_iteration_seconds_count",] == 7
    assert found["castor_checkpoint_lag_iterations",] == 0
    assert found["castor_replicas",] == 2
    assert found["castor_replicas_missing",] == 0
    assert found["castor_generation",] in (2, 3)
    assert found["castor_places_empty",] == 0
    assert found["castor_recoveries_total", "hardware", "peer"] == 1
    assert sum(v for (name, *_), v in found.items() if name == "castor_recoveries_total") == 1
    phases = {
        labels[1]: v
        for (name, *labels), v in found.items()
        if name == "castor_recovery_seconds_total" and labels[0] == "hardware"
    }
    assert min(phases["detection"], phases["retrieval"], phases["restart"]) > 0
    lost_s = found["castor_lost_seconds_total", "hardware_failure"]
    assert lost_s == pytest.approx(sum(phases.values()) - phases["first_iteration"])
    assert 0 < found["castor_effective_training_time_ratio",] < 1
    assert found["castor_outage_seconds",] == 0
    part = found["castor_bytes_total", "memory", "checkpoint", "own_memory"] / 7
    assert part > 3000 * 8
    assert found["castor_bytes_total", "network", "checkpoint", "peer"] >= 7 * part
    assert found["castor_memory_used_bytes",] > 4 * part
    assert found["castor_memory_left_bytes",] > 0
    # Who has just come counts from there.
    stood_in = values(scrapes["node-4"])
    assert stood_in["castor_iterations_total",] == 3
    assert stood_in["castor_bytes_total", "network", "recovery", "peer"] >= 2 * part
    told = {family.name for family in text_string_to_metric_families(scrapes["node-0"])}
    known = {f.name.removesuffix("_total") if f.kind == COUNTER else f.name for f in FAMILIES}
    assert told == known
    needs("promtool")
    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input=scrapes["node-0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


# ---- what is counted ---------------------------------------------------------------------------


def plan(generation: int, phase: Phase, lives: str = "abcd", **changes: Any) -> Plan:
    agents = tuple(f"node-{i}" if life != "-" else "" for i, life in enumerate(lives))
    incarnations = tuple("" if life == "-" else life for life in lives)
    return Plan(generation, 1, phase, agents, incarnations, tier="own_memory", **changes)


def ended(iteration: int, generation: int = 1, seconds: float = 2.0, rank: int = 0) -> Event:
    return IterationEnded(generation=generation, rank=rank, iteration=iteration, seconds=seconds)


def complete(iteration: int, blocked_s: float, rank: int = 0) -> Event:
    return CheckpointCompleted(
        generation=1, rank=rank, iteration=iteration, blocked_s=blocked_s, sent_bytes=10
    )


def test_each_second_is_booked_once_on_what_took_it() -> None:
    tally = Tally(replace(small_job(), ranks_per_machine=2))
    tally.plan(plan(1, Phase.GATHER), 0.0)
    tally.plan(plan(1, Phase.LOAD), 1.0)
    tally.take(Resumed(generation=1, rank=0, iteration=0), 10.0)
    for iteration in range(1, 6):
        tally.take(ended(iteration, rank=1), 10.0 + 2 * iteration)
        tally.take(ended(iteration), 10.0 + 2 * iteration)
        tally.take(complete(iteration, 0.25), 10.5 + 2 * iteration)
        # The machine waits as long as its slowest rank.
        tally.take(complete(iteration, 0.5, rank=1), 10.5 + 2 * iteration)
    # Two iterations are lost, a place is empty for 7 s, and the first attempt to load fails.
    tally.plan(plan(2, Phase.GATHER, "ab-d"), 25.0)
    assert tally.read(26.0).outage_s == 6.0
    tally.plan(plan(2, Phase.GATHER, "abxd"), 32.0)
    tally.plan(plan(2, Phase.LOAD, "abxd", iteration=3), 33.0)
    tally.plan(plan(3, Phase.GATHER, "abxd"), 35.0)
    tally.plan(plan(3, Phase.LOAD, "abxd", iteration=3), 36.0)
    tally.take(Resumed(generation=3, rank=0, iteration=3), 37.5)
    tally.take(Resumed(generation=3, rank=1, iteration=3), 38.0)
    for iteration in (4, 5, 6):
        tally.take(ended(iteration, generation=3), 32.0 + 2 * iteration)
    counts = tally.read(48.0)
    assert (counts.iteration, counts.iterations, counts.iterations_redone) == (6, 8, 2)
    assert dict(counts.recoveries) == {("hardware", "own_memory"): 1}
    assert {phase: s for (_, phase), s in counts.recovery_s.items()} == {
        "detection": 5.0,
        "interrupted": 10.0,
        "replacement": 0.0,
        "planning": 1.0,
        "retrieval": 0.0,
        "restart": 2.0,
        "first_iteration": 2.0,
    }
    assert counts.lost_s == {
        "checkpoint_stall": 2.5,
        "hardware_failure": 18.0,
        "iterations_redone": 4.0,
    }
    assert counts.outage_s == 0
    assert counts.training_s == 38.0
    assert counts.effective_ratio == pytest.approx(1 - 24.5 / 38)
    assert counts.iteration_buckets[4] == 8
    # Another machine's new life is no failure of hardware twice.
    tally.plan(plan(4, Phase.LOAD, "abxd"), 50.0)
    tally.take(ended(7, generation=4), 51.0)
    assert tally.read(60.0).recoveries["software", "own_memory"] == 1
    tally.plan(plan(4, Phase.FINISHED, "abxd"), 62.0)
    assert tally.read(99.0).training_s == 52.0
    tally.take(StoreLost(agent="node-0"), 63.0)
    assert not tally.read(64.0).store_reachable
    tally.take(StoreBack(agent="node-0"), 64.0)
    assert tally.read(64.0).store_reachable


# ---- whether it is ready -----------------------------------------------------------------------


def reading(standing: str = State.RUNNING, **changes: Any) -> Readings:
    report = AgentReport(
        "node-1", "b", False, "h:1", generation=2, state=standing, redundant=True, reason="why"
    )
    given = {"plan": plan(2, Phase.LOAD), "report": report, "machine": 1} | changes
    return Readings(at_s=0.0, version="1", **given)


ASIDE = SetAside("node-1", "b", "its disk is full")


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (reading(), ""),
        (reading(report=None), "starting: the agent has not joined its job yet"),
        (reading(plan=None), "waiting: the job has no plan yet; its agents are not all here"),
        (reading(machine=None), ""),
        (
            reading(machine=None, plan=plan(2, Phase.LOAD, aside=(ASIDE,))),
            "set aside until this agent is started again: its disk is full",
        ),
        (
            reading(plan=plan(3, Phase.GATHER, "a--d", reason="node-1 died")),
            "recovering: generation 3 gathers, 2 places are empty after: node-1 died",
        ),
        (
            reading(plan=plan(1, Phase.GATHER, "ab--", reason="start")),
            "starting: generation 1 gathers, 2 places are empty",
        ),
        (
            reading(plan=plan(3, Phase.LOAD, iteration=7)),
            "recovering: generation 3 loads iteration 7",
        ),
        (reading(State.LOADING), "recovering: generation 2 loads iteration 0"),
        (reading(State.FAILED), "its trainers are failed: why"),
        (
            reading(plan=plan(2, Phase.LOAD, waits_for="the script is not the same")),
            "generation 2 waits: the script is not the same",
        ),
        (
            reading(report=replace(reading().report, redundant=False)),  # type: ignore[type-var]
            "degraded: replicas that belong here are still missing in generation 2",
        ),
        (reading(plan=plan(2, Phase.FAILED, reason="no luck")), "the job is over, failed: no luck"),
        (reading(plan=plan(2, Phase.FINISHED, reason="x")), "the job is over, finished"),
    ],
)
def test_why_a_machine_is_not_ready_is_said(seen: Readings, said: str) -> None:
    assert seen.not_ready(store_reachable=True) == said


def test_a_machine_that_trains_without_its_store_is_not_ready() -> None:
    said = reading().not_ready(store_reachable=False)
    assert said.startswith("the store does not answer: training goes on")


def test_a_taken_port_is_said_once_and_an_agent_that_stands_is_unwell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("castor_runtime.metrics.agent_metrics._TRY_AGAIN_S", 0.0)
    monkeypatch.setattr("castor_runtime.metrics.agent_metrics.READ_EVERY_S", 0.01)
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        now = [time.monotonic()]
        metrics = AgentMetrics(
            small_job(), "a", "127.0.0.1", port, lambda: Readings(now[0], "1"), said.append
        )

        async def run() -> None:
            metrics.start()
            while not said:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            taken.close()
            while not metrics.address:
                await asyncio.sleep(0.01)
            assert await asyncio.to_thread(ask, metrics.address, "/healthz") == (200, "ok\n")
            now[0] -= 11.0
            await asyncio.sleep(0.05)
            code, text = await asyncio.to_thread(ask, metrics.address, "/healthz")
            assert (code, text) == (503, "the agent's event loop stands for 11 s\n")
            await metrics.close()

        asyncio.run(run())
    assert len(said) == 2
    assert said[0].startswith(f"no metrics: 127.0.0.1 port {port} cannot be listened on: ")
    assert said[1] == f"metrics are at http://127.0.0.1:{port}/metrics"


# ---- the page ----------------------------------------------------------------------------------


def test_the_page_has_every_metric_as_the_code_has_it() -> None:
    page = (ROOT / "docs" / "watching.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `castor_")]
    assert rows == [
        f"| `{one.name}` | {one.kind} | {', '.join(f'`{name}`' for name in one.labels)} "
        f"| {one.help} |".replace("  |", " |")
        for one in FAMILIES
    ]
    assert len(BY_NAME) == len(FAMILIES)
