"""castor jobs, logs, events, result, recovery and status: a job that is looked at from anywhere.

A real etcd, and agents' servers in this process: two that are alive, and what one that has ended
has left in the store.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from castor.app import app
from castor_configs.errors import InputError
from castor_policy.agents.agent_report import AgentReport, State
from castor_policy.agents.evidence import Culprit
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.store_keys import accounts_prefix, agents_prefix, plan_key, spec_key
from castor_policy.store import Put, Txn
from castor_records.events.event import Event
from castor_records.events.failures import Detected, Planned, Resumed
from castor_records.events.storing import ClockMeasured
from castor_records.events.training import IterationEnded
from castor_records.result import Result
from castor_runtime.agent.event_log import EventLog
from castor_runtime.agent.options import AgentOptions
from castor_runtime.agent.own_account import OwnAccount
from castor_runtime.stores import EmbeddedEtcd, open_store
from castor_runtime.transport import JobSecret, PartMissingError, PeerServer

S = 1_000_000_000
SPEC = JobSpec(
    job="told",
    machines=2,
    ranks_per_machine=1,
    placement="group",
    replicas=((0, 1), (1, 0)),
    script="train.py",
    arguments=("--seed", "7"),
    started_ns=time.time_ns() - 100 * S,
)
AHEAD_S = 5.0
"""So far ahead is b's clock."""


class Nothing:
    def open(self, rank: int, iteration: int) -> Any:
        raise PartMissingError(f"no part of rank {rank}, iteration {iteration}")


@dataclass(frozen=True)
class Place:
    """Where the job is."""

    folder: Path
    store: str
    secret: Path

    def castor(self, *line: str, code: int = 0) -> str:
        """Return what a command prints, on both streams; its exit code is as expected."""
        ran = CliRunner().invoke(app, list(line), env={"CASTOR_STORE": "", "CASTOR_SECRET": ""})
        if code == 2:
            assert isinstance(ran.exception, InputError), ran.output
            return str(ran.exception)
        assert ran.exit_code == code, (ran.output, ran.exception)
        return ran.output

    def ask(self, command: str, *options: str, code: int = 0) -> str:
        reach = ("--store", self.store, "--secret", str(self.secret))
        return self.castor(command, "told", *reach, *options, code=code)


async def made(place: Place, stack: AsyncExitStack) -> None:
    """Put a job into the store, with agents a and b that are alive and c that has ended."""
    secret = JobSecret(place.secret.read_bytes())
    store = open_store(place.store)
    stack.push_async_callback(store.close)

    async def put(key: str, value: str) -> None:
        await store.transact(Txn((), (Put(key, value),)))

    plan = Plan(
        2,
        1,
        Phase.LOAD,
        ("a", "b"),
        ("1", "1"),
        iteration=19,
        culprits=(Culprit(1, -1, "c", "lease", "its lease expired"),),
    )
    await put(spec_key("told"), SPEC.to_json())
    await put(plan_key("told"), plan.to_json())
    await put("/castor/other/spec", "of another version")
    events: dict[str, list[tuple[float, Event]]] = {
        "a": [
            *((i / 10, IterationEnded(iteration=i, generation=1, rank=0)) for i in range(1, 20)),
            (2.5, Detected(generation=2, machine=1, agent="c", cause="its lease expired")),
            (2.6, Planned(generation=2, iteration=19, tier="peer", term=1)),
            (2.9, Resumed(generation=2, rank=0, iteration=19)),
            (3.0, IterationEnded(iteration=20, generation=2, rank=0)),
        ],
        "b": [
            (0.1, ClockMeasured(agent="b", reference="a", offset_ns=-5 * S, uncertainty_ns=S // 9)),
            (2.8, Resumed(generation=2, rank=1, iteration=19)),
        ],
        "c": [(1.9, IterationEnded(iteration=19, generation=1, rank=1))],
    }
    for name, told in events.items():
        folder = place.folder / name
        log = EventLog(folder / "events.jsonl", SPEC.started_ns)
        stack.callback(log.close)
        for at_s, event in told:
            ahead_s = AHEAD_S if name == "b" else 0.0
            log.write(event, SPEC.started_ns + round((at_s + ahead_s) * S))
        (folder / "agent.log").write_text(f"agent {name} says\n")
        (folder / f"rank-{'abc'.index(name)}.log").write_text(
            "".join(f"step {step} of {name}\n" for step in range(30))
        )
        account = OwnAccount(AgentOptions(name, "told", "", folder), SPEC, log, store, print)
        if name == "c":
            await account.leave()
            continue
        server = PeerServer(
            "127.0.0.1",
            credentials=secret,
            run=SPEC.run,
            source=Nothing(),
            status=dict,
            told=account.told,
        )
        await stack.enter_async_context(server)
        report = AgentReport(
            name, "1", False, server.address, 2, State.RUNNING, iteration=20, redundant=True
        )
        await put(agents_prefix("told") + name, report.to_json())


async def ended(place: Place, stack: AsyncExitStack) -> None:
    """Put a job into the store whose agents have ended, one of them without an account."""
    store = open_store(place.store)
    stack.push_async_callback(store.close)
    spec = replace(SPEC, job="done")
    plan = Plan(1, 1, Phase.FINISHED, ("a", "b"), ("1", "1"), reason="finished", reached=30)
    puts = [Put(spec_key("done"), spec.to_json()), Put(plan_key("done"), plan.to_json())]
    await store.transact(Txn((), tuple(puts)))
    for rank, name in enumerate("ab"):
        folder = place.folder / "done" / name
        log = EventLog(folder / "events.jsonl", spec.started_ns)
        stack.callback(log.close)
        at_ns = spec.started_ns + (7 + rank) * S
        log.write(IterationEnded(iteration=30, generation=1, rank=rank), at_ns)
        final = {"iteration": 30, "ranks": {str(rank): "0123"}}
        (folder / "final.json").write_text(json.dumps(final))
        await OwnAccount(AgentOptions(name, "done", "", folder), spec, log, store, print).leave()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("told")
    etcd = EmbeddedEtcd(folder / "etcd")
    etcd.start()
    found = Place(folder, etcd.url, folder / "secret")
    found.secret.write_bytes(b"0123456789abcdef" * 2)
    ready, done = threading.Event(), threading.Event()

    async def serve() -> None:
        async with AsyncExitStack() as stack:
            await made(found, stack)
            await ended(found, stack)
            ready.set()
            await asyncio.get_running_loop().run_in_executor(None, done.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(60)
    yield found
    done.set()
    thread.join()
    etcd.close()


def test_all_jobs_of_a_store_are_listed(place: Place) -> None:
    shown = place.castor("jobs", "--store", place.store)
    assert "told" in shown
    assert "training" in shown
    assert "2/2" in shown
    assert "unreadable" in shown
    lines = place.castor("jobs", "--store", place.store, "--json").splitlines()
    done, other, told = (json.loads(line) for line in lines)
    assert (done["state"], done["iteration"], done["alive"]) == ("finished", 30, 0)
    assert (other["job"], other["state"]) == ("other", "unreadable")
    assert told | {"age_s": 0} == {
        "job": "told",
        "run": SPEC.run,
        "state": "training",
        "iteration": 20,
        "alive": 2,
        "machines": 2,
        "standbys": 0,
        "age_s": 0,
        "last_failure": "its lease expired",
        "reason": "",
    }
    assert 100 < told["age_s"] < 3600  # since this file was read


def test_logs_come_with_who_said_them_and_who_is_gone_is_named(place: Place) -> None:
    shown = place.ask("logs", "--tail", "2").splitlines()
    assert shown == [
        "a/agent  | agent a says",
        "a/rank-0 | step 28 of a",
        "a/rank-0 | step 29 of a",
        "b/agent  | agent b says",
        "b/rank-1 | step 28 of b",
        "b/rank-1 | step 29 of b",
        f"castor: c is not alive; its logs are on {socket.gethostname()}, in {place.folder / 'c'}",
    ]
    one = place.ask("logs", "--rank", "1", "--tail", "1")
    assert one.splitlines()[0] == "b/rank-1 | step 29 of b"
    all_of_a = place.ask("logs", "--node", "a", "--rank", "0", "--tail", "all").splitlines()
    assert all_of_a == [f"a/rank-0 | step {step} of a" for step in range(30)]
    assert "there is no agent 'x'; there are a, b, c" in place.ask("logs", "--node", "x", code=2)
    assert "expected a number of lines" in place.ask("logs", "--tail", "x", code=2)


def test_logs_are_copied_into_a_folder_and_nothing_of_anybody_elses_is_replaced(
    place: Place, tmp_path: Path
) -> None:
    copies = tmp_path / "copies"
    said = place.ask("logs", "--save", str(copies))
    assert f"castor: copied 6 logs of 2 agents into {copies}\n" in said
    assert "castor: c is not alive" in said
    for name in "ab":
        of_agent = sorted(path for path in (place.folder / name).iterdir() if path.is_file())
        assert [path.name for path in of_agent if path.suffix != ".json"] == sorted(
            path.name for path in (copies / name).iterdir()
        )
        for copied in (copies / name).iterdir():
            assert copied.read_bytes() == (place.folder / name / copied.name).read_bytes()
    # What it has written itself it writes again, but not what somebody has changed since.
    (copies / "b" / "agent.log").write_text("a note\n")
    (copies / "a" / "rank-0.log").unlink()
    assert "castor did not write it" in place.ask("logs", "--save", str(copies), code=2)
    assert not (copies / "a" / "rank-0.log").exists()
    one = place.ask("logs", "--save", str(copies), "--node", "a", "--rank", "0")
    assert "copied 1 logs of 1 agents" in one
    assert (copies / "a" / "rank-0.log").exists()
    place.ask("logs", "--save", str(copies), "--overwrite")
    assert (copies / "b" / "agent.log").read_text() == "agent b says\n"
    told = [
        json.loads(line)["kind"]
        for line in (copies / "a" / "events.jsonl").read_text().splitlines()
    ]
    assert told.count("iteration_ended") == 20
    assert "whole logs" in place.ask("logs", "--save", str(copies), "-f", code=2)


def test_events_are_in_the_order_in_which_they_happened(place: Place) -> None:
    shown = place.ask("events")
    assert [line.split()[2] for line in shown.splitlines()] == ["a", "a"]
    assert "detected: machine 1 (c): its lease expired" in shown
    told = [json.loads(line) for line in place.ask("events", "--json").splitlines()]
    assert [one["time_ns"] for one in told] == sorted(one["time_ns"] for one in told)
    # b's clock is 5 s ahead: by that it would have resumed last.
    resumed = [(one["rank"], one["by"]) for one in told if one["kind"] == "resumed"]
    assert resumed == [(1, "b"), (0, "a")]
    clocks = {one["by"]: one["clock"] for one in told}
    assert clocks["b"] == {
        "offset_s": -5.0,
        "uncertainty_s": pytest.approx(1 / 9),
        "reference": "a",
    }
    assert clocks["c"] is None
    every = place.ask("events", "--all")
    assert every.count("iteration_ended") == 19 + 1 + 1


def test_a_recovery_is_told_from_anywhere(place: Place) -> None:
    reach = ("--store", place.store, "--secret", str(place.secret), "--job", "told")
    (one,) = json.loads(place.castor("recovery", *reach, "--json"))["recoveries"]
    assert (one["generation"], one["iteration"]) == (2, 19)
    assert one["seconds"]["detection"] == pytest.approx(0.6)
    assert one["seconds"]["restart"] == pytest.approx(0.3)
    document = json.loads(place.castor("status", *reach, "--json"))
    assert document["recoveries"] == [one]
    assert document["unreached"] == {}
    assert document["clocks"]["b"]["offset_s"] == -5.0
    assert "--job" in place.castor("recovery", *reach[:2], code=2)


def test_a_result_is_that_of_a_run_folder(place: Place) -> None:
    document = json.loads(place.ask("result"))
    result = Result.of_json(document)
    assert (result.job, result.run, result.outcome) == ("told", SPEC.run, "running")
    assert (result.iterations, result.seeds) == (20, {"--seed": "7"})
    assert [one.generation for one in result.recoveries] == [2]


def test_after_the_end_the_store_tells_it_without_the_secret(place: Place) -> None:
    reach = ("--store", place.store)
    result = Result.of_json(json.loads(place.castor("result", "done", *reach)))
    assert (result.outcome, result.iterations, result.wall_s) == ("finished", 30, 8.0)
    sha256 = hashlib.sha256(b"01230123").hexdigest()
    assert result.final_state_sha256 == sha256
    shown = place.castor("status", "--job", "done", *reach)
    assert "finished" in shown
    assert sha256 in shown
    assert place.castor("events", "done", *reach, "--json").count("iteration_ended") == 2
    line = ("logs", "done", *reach, "--secret", str(place.secret))
    assert place.castor(*line).splitlines() == [
        f"castor: {name} is not alive; its logs are on {socket.gethostname()}, in "
        f"{place.folder / 'done' / name}"
        for name in "ab"
    ]
    assert "nothing failed in this run" in place.castor("recovery", *reach, "--job", "done", code=2)


def test_a_job_that_is_removed_leaves_nothing(place: Place) -> None:
    async def keys(prefix: str) -> list[str]:
        store = open_store(place.store)
        found, _ = await store.get_prefix(prefix)
        await store.close()
        return [one.key for one in found]

    assert len(asyncio.run(keys(accounts_prefix("done")))) == 2
    place.castor("rm", "done", "--store", place.store)
    assert asyncio.run(keys(accounts_prefix("done"))) == []
    assert asyncio.run(keys("/castor/done/")) == []


def test_without_the_secret_only_what_is_in_the_store_is_told(place: Place) -> None:
    told = place.castor("events", "told", "--store", place.store)
    assert "2 agents are alive: give --secret FILE to ask them" in told
    for command in ("logs", "events"):
        line = (command, "told", "--store", place.store, "-f")
        assert "its agents answer nobody else" in place.castor(*line, code=2)
    wrong = place.folder / "wrong"
    wrong.write_bytes(b"fedcba9876543210")
    reach = ("--store", place.store, "--secret", str(wrong))
    shown = place.castor("events", "told", *reach)
    assert shown.count("does not know this job's secret") == 2
    assert "the store has no job 'x'" in place.castor("events", "x", *reach, code=2)


def test_the_events_of_a_run_folder_are_told_the_same_way(place: Place, tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    for name in "abc":
        (tmp_path / "agents" / name).symlink_to(place.folder / name)
    (tmp_path / "run.json").write_text("{}")
    own = place.castor("events", "--run", str(tmp_path), "--json")
    told = place.ask("events", "--json", "--all")
    assert sorted(own.splitlines()) == sorted(told.splitlines())
    logs = place.castor("logs", "--run", str(tmp_path), "--rank", "2", "--tail", "1")
    assert logs == "c/rank-2 | step 29 of c\n"
