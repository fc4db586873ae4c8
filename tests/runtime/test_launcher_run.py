"""Whole runs of the launcher: real etcd, processes and signals; a stand-in for the agent.

The stand-in writes what an agent writes (agent.json, events.jsonl, final.json, its report, the
plan) and forks one trainer, which only sleeps. Real training is in tests/cluster.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from castor.app import app
from castor_configs.errors import InputError
from castor_configs.job import Job, LaunchOptions
from castor_configs.job_file import GivenJob, job_toml
from castor_lab.faults.injector import Injector
from castor_lab.faults.requested import requested_faults
from castor_policy.agents.plan import Phase, Plan
from castor_policy.job_options import TrafficOptions
from castor_policy.store import Delete, Put, Txn
from castor_records.events.failures import Failed
from castor_records.events.line import parse_line
from castor_records.run_record import RunRecord
from castor_runtime.launcher.control import ask
from castor_runtime.launcher.job_view import JobView
from castor_runtime.launcher.result_file import Outcome, write_result
from castor_runtime.launcher.status import status_document
from castor_runtime.launcher.train_options import TrainOptions, job_spec
from castor_runtime.launcher.training_run import TrainingRun
from castor_runtime.processes import descendants
from castor_runtime.stores import EmbeddedEtcd, open_store

pytestmark = pytest.mark.long  # all of it starts real processes, many times

# Each iteration lasts 20 ms.
AGENT = """
import asyncio, ctypes, json, os, signal, sys, time
from pathlib import Path
from castor_configs.atomic import write_text
from castor_policy.agents.agent_report import *
from castor_policy.agents.job_spec import *
from castor_policy.agents.plan import *
from castor_policy.agents.store_keys import *
from castor_records.events.failures import *
from castor_records.events.training import *
from castor_policy.store import *
from castor_runtime.agent.event_log import EventLog
from castor_runtime.stores import open_store

def preload(script):
    pass

def trainer():
    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        time.sleep(600)
        os._exit(0)
    return pid

def run_agent(options):
    return asyncio.run(Agent(options).run())

class Agent:
    def __init__(self, options):
        self.options = options
        self.run_dir = options.folder.parent.parent
        self.machine = None if options.standby else int(options.name[5:])
        # A file a machine: the iteration that it reached, as checkpoint memory would have it.
        self.generation = 1
        self.iteration = 0
        self.since = time.monotonic()

    def state(self, machine):
        return self.run_dir / "agents" / f"m{machine}.txt"

    def write_agent(self):
        write_text(self.options.folder / "agent.json", json.dumps({
            "incarnation": str(os.getpid()), "pid": os.getpid(), "fork_server_pid": 0,
            "trainers": {} if self.machine is None else {str(self.machine): self.child},
            "generation": self.generation, "machine": self.machine,
            "segments": {}, "control": ""}))

    def event(self, kind, **fields):
        self.log.write(kind(generation=self.generation, **fields))

    async def put(self, *puts):
        try:
            await self.store.transact(Txn((), puts))
            return True
        except StoreUnavailableError:
            return False

    async def report(self):
        report = AgentReport(self.options.name, str(os.getpid()), self.options.standby, "h:1",
                             self.generation, State.RUNNING, iteration=self.iteration)
        await self.put(Put(agents_prefix(self.job) + self.options.name, report.to_json()))

    async def plan(self, phase, reason=""):
        rows = tuple(f"node-{m}" for m in range(self.spec.machines))
        plan = Plan(self.generation, 1, phase, rows, rows, reason=reason)
        await self.put(Put(plan_key(self.job), plan.to_json()))

    def recover(self, cause, failure):
        self.generation += 1
        self.event(Detected, failure=failure, machine=self.machine, cause=cause,
                   agent=self.options.name)
        self.event(Planned, iteration=self.iteration, tier="own_memory")
        self.event(Retrieved, rank=self.machine, iteration=self.iteration, source="own_memory")
        self.child = trainer()
        self.event(Resumed, rank=self.machine, iteration=self.iteration)
        self.write_agent()

    async def run(self):
        self.job = self.options.job
        self.store = open_store(self.options.store)
        keys, _ = await self.store.get_prefix(spec_key(self.job))
        self.spec = JobSpec.from_json(keys[0].value)
        last = int(self.spec.arguments[0])
        mode = self.spec.arguments[1] if len(self.spec.arguments) > 1 else ""
        self.log = EventLog(self.options.folder / "events.jsonl", self.spec.started_ns)
        self.child = 0
        if mode == "crash":
            raise RuntimeError("a fault in the agent")
        if mode == "refuse" and self.machine == 1:
            return 2
        self.write_agent()
        if self.machine is None:
            await self.report()
            wanted = self.run_dir / "agents" / "wanted"
            while not wanted.exists():
                await asyncio.sleep(0.01)
            self.machine = int(wanted.read_text())
            wanted.unlink()
        if self.state(self.machine).exists():
            generation, iteration = self.state(self.machine).read_text().split()
            self.generation, self.iteration = int(generation), int(iteration)
            self.recover("the agent is new", "software")
        else:
            self.child = trainer()
            self.write_agent()
        if self.machine == 0:
            await self.put(Put(root_key(self.job), self.options.name))
            await self.plan(Phase.LOAD)
        await self.report()
        while self.iteration < last:
            await asyncio.sleep(0.02)
            if os.waitpid(self.child, os.WNOHANG)[0]:
                self.recover("its trainer was killed", "software")
            self.iteration += 1
            write_text(self.state(self.machine), f"{self.generation} {self.iteration}")
            self.event(IterationEnded, rank=self.machine, iteration=self.iteration,
                       loss=1 / self.iteration)
            if self.machine == 0:
                await self.replace_the_dead()
        if mode == "fail":
            (self.options.folder / f"rank-{self.machine}.log").write_text(
                "loading\\nTraceback (most recent call last):\\nValueError: the loss is NaN\\n")
            if self.machine == 0:
                await self.plan(Phase.FAILED, "the loss is NaN")
            return 1
        await self.report()
        if self.machine == 0:
            others = [self.state(m) for m in range(1, self.spec.machines)]
            while not all(s.exists() and int(s.read_text().split()[1]) == last for s in others):
                await asyncio.sleep(0.01)
                await self.replace_the_dead()
            await self.plan(Phase.FINISHED)
        digest = f"{self.machine:064x}"
        write_text(self.options.folder / "final.json",
                   json.dumps({"iteration": last, "ranks": {str(self.machine): digest}}))
        os.kill(self.child, signal.SIGKILL)
        return 0

    async def replace_the_dead(self):
        for machine in range(1, self.spec.machines):
            file = self.run_dir / "agents" / f"node-{machine}" / "agent.json"
            lost = self.run_dir / "agents" / f"lost-{machine}"
            if not file.exists() or lost.exists():
                continue
            pid = json.loads(file.read_text())["pid"]
            if Path(f"/proc/{pid}").exists():
                self.since = time.monotonic()
            elif time.monotonic() - self.since > 0.4:
                (self.run_dir / "agents" / "wanted").write_text(str(machine))
                wanted = f"{self.generation + 1}-{machine}"
                if await self.put(Put(requests_prefix(self.job) + wanted, "")):
                    lost.touch()
"""


class Run:
    """One run of the launcher, in this process."""

    def __init__(
        self,
        path: Path,
        *arguments: str,
        kill: tuple[str, ...] = (),
        nodes: int = 2,
        store: str = "embedded",
        local: bool = True,
    ) -> None:
        (path / "standin_agent.py").write_text(AGENT)
        script = path / "train.py"
        script.write_text("")
        self.job = f"t{secrets.token_hex(4)}"
        self.given = Job(
            script=str(script.resolve()),
            arguments=arguments,
            launch=LaunchOptions(job=self.job, nodes=nodes, replicas=min(2, nodes)),
            traffic=TrafficOptions(chunk_bytes=1 << 20),
        )
        spec = job_spec(self.given)
        self.options = TrainOptions(
            spec=spec,
            out=path / "run",
            store=store,
            local_agents=local,
            job_file=job_toml(self.given),
        )
        self.shown = io.StringIO()
        self.others = descendants(os.getpid())
        self.run = TrainingRun(
            self.options,
            Console(file=self.shown, width=200),
            observer=Injector(requested_faults(kill, None, 1.0, spec, store)),
            agent_main="standin_agent:run_agent",
            preload="standin_agent:preload",
        )

    def to_the_end(self, *meanwhile: Coroutine[None, None, None]) -> Outcome:
        async def both() -> Outcome:
            others = [asyncio.create_task(one) for one in meanwhile]
            outcome = await asyncio.wait_for(self.run.run(), 30)
            await asyncio.gather(*others)
            return outcome

        outcome = asyncio.run(both())
        self.result = write_result(self.run.folder, self.options, self.run.spec, outcome)
        self.left_nothing()
        assert GivenJob(self.run.folder.job_file).checked() == self.given
        return outcome

    def left_nothing(self) -> None:
        assert self.others == descendants(os.getpid())
        assert list(Path("/dev/shm").glob(f"castor-{self.job}*")) == []
        assert not self.run.folder.control_socket.exists()

    def failures(self) -> list[str]:
        lines = self.run.folder.events_file.read_text().splitlines()
        events = [event for line in lines if (event := parse_line(line)) is not None]
        assert events == sorted(events, key=lambda event: event.time_ns)
        return [e.event.target for e in events if isinstance(e.event, Failed)]


@pytest.fixture(autouse=True)
def _importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


async def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, f"still not {what}"
        await asyncio.sleep(0.005)


def test_a_run_lives_through_its_faults_and_is_summed_up(tmp_path: Path) -> None:
    kill = ("rank:1@5", "agent:0@20", "store@25/0.1s", "machine:1@40", "rank:0@100000")
    run = Run(tmp_path, "60", "--seed=7", kill=kill)
    outcome = run.to_the_end()
    shown = run.shown.getvalue()
    assert outcome.outcome == "finished", shown
    assert run.failures() == ["rank:1", "agent:0", "store", "machine:1"]
    assert "FAILURE injected: machine:1 (hardware)" in shown
    assert "agent node-0 died (killed by signal 9); it is restarted" in shown
    assert "machine of agent node-1 is gone" in shown
    assert "a machine was asked for: starting spare-0" in shown
    assert "the store runs again" in shown
    assert "recovery (" in shown
    assert outcome.not_injected == ("rank:0@100000",)
    result = json.loads(run.run.folder.result_file.read_text())
    assert (result["iterations"], result["outcome"]) == (60, "finished")
    digests = "".join(f"{rank:064x}" for rank in range(2))
    assert result["final_state_sha256"] == hashlib.sha256(digests.encode()).hexdigest()
    assert {one["kind"] for one in result["recoveries"]} <= {"software", "hardware"}
    assert result["recoveries"]
    assert result["seeds"] == {"--seed": "7"}
    assert result["versions"]["torch"] != "not installed"


def test_the_last_iteration_is_known_when_no_agent_is_left(tmp_path: Path) -> None:
    run = Run(tmp_path, "5")
    assert run.to_the_end().outcome == "finished"
    plan = Plan(1, 1, Phase.FINISHED, ("node-0", "node-1"), ("node-0", "node-1"))
    view = JobView(run.job, spec=run.run.spec, plan=plan)
    document = status_document(view, run.run.folder)
    assert (document["phase"], document["iteration"]) == ("finished", 5)
    assert status_document(view, None)["iteration"] == 0


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    outcome = Run(tmp_path, "3", "fail").to_the_end()
    assert (outcome.outcome, outcome.reason, outcome.code) == ("failed", "the loss is NaN", 1)


def test_agents_that_crash_again_and_again_end_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path, "3", "crash", nodes=1)
    outcome = run.to_the_end()
    assert (outcome.outcome, outcome.code) == ("failed", 1)
    assert "agent node-0 died again and again" in outcome.reason


def test_what_an_agent_refuses_ends_the_run_at_once(tmp_path: Path) -> None:
    run = Run(tmp_path, "1000000", "refuse")
    assert run.to_the_end() == Outcome("refused", "agent node-1 refused to start", 2)
    assert run.result.final_state_sha256 is None


def test_a_run_without_machines_gets_one(tmp_path: Path) -> None:
    run = Run(tmp_path, "20", kill=("root@10",), nodes=1)

    async def place() -> None:
        await until(lambda: run.run.folder.record("spare-0") is not None, "started")
        (run.options.out / "agents" / "wanted").write_text("0")

    assert run.to_the_end(place()).outcome == "finished"
    assert run.failures() == ["root:0"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    run = Run(tmp_path, "1000000")

    async def interrupt() -> None:
        await until(lambda: len(run.run.folder.records()) == 2, "up")
        os.kill(os.getpid(), number)

    outcome = run.to_the_end(interrupt())
    assert (outcome.outcome, outcome.code) == ("interrupted", 128 + number)


def test_another_terminal_asks_for_status_and_kills(tmp_path: Path) -> None:
    run = Run(tmp_path, "1000000")
    folder = run.run.folder
    said: dict[str, Any] = {}

    def castor(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments, "--run", str(folder.path)])
        assert result.exit_code == 0, result.output
        return result.stdout

    def other_terminal() -> None:
        said["now"] = castor("kill", "--rank", "1")
        said["later"] = castor("kill", "--agent", "1", "--signal", "STOP", "--at-iteration", "5")
        said["root"] = castor("kill", "--root")
        said["status"] = json.loads(castor("status", "--json"))
        said["store"] = castor("kill", "--store")
        said["bad"] = ask(folder.control_socket, {"op": "inject", "fault": "rank:9@now"})
        with pytest.raises(InputError, match="give one of"):
            CliRunner().invoke(app, ["kill"], catch_exceptions=False)

    async def elsewhere() -> None:
        def trains() -> bool:
            return run.run.folder.path.joinpath("agents/m1.txt").exists()

        await until(trains, "training")
        try:
            await asyncio.to_thread(other_terminal)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    run.to_the_end(elsewhere())
    assert said["now"] == f"KILL sent to rank:1 of job {run.job}\n"
    assert said["later"] == f"STOP sent to agent:1 of job {run.job}\n"
    assert said["root"] == f"KILL sent to root:0 of job {run.job}\n"
    status = said["status"]
    assert (status["job"], status["phase"], status["root"]) == (run.job, "load", "node-0")
    assert [one["agent"] for one in status["machines"]] == ["node-0", "node-1"]
    assert status["degraded"] is True
    assert said["bad"] == {"ok": False, "reason": "'rank:9@now': there is no rank 9; use 0..1"}
    assert ask(folder.control_socket, {}) is None
    assert run.failures() == ["rank:1", "agent:1", "root:0", "store"]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    etcd = EmbeddedEtcd(tmp_path / "own-etcd")
    etcd.start()
    yield etcd.url
    etcd.stop()


def keys(url: str) -> list[str]:
    async def read() -> list[str]:
        opened = open_store(url)
        try:
            found, _ = await opened.get_prefix("/castor/")
            return [item.key for item in found]
        finally:
            await opened.close()

    return asyncio.run(read())


def test_a_users_store_is_left_as_it_was_found(tmp_path: Path, store: str) -> None:
    assert Run(tmp_path, "5", store=store).to_the_end().outcome == "finished"
    assert keys(store) == []


def test_agents_that_are_started_elsewhere_are_waited_for(tmp_path: Path, store: str) -> None:
    run = Run(tmp_path, "30", store=store, local=False)
    agents: list[asyncio.subprocess.Process] = []
    code = (
        "import sys; from pathlib import Path; from standin_agent import run_agent; "
        "from castor_runtime.agent.options import AgentOptions; "
        "name, job, store, out = sys.argv[1:]; "
        "run_agent(AgentOptions(name=name, job=job, store=store, folder=Path(out) / name))"
    )

    waiting = f"waiting for 2 agents: castor agent --store {store} --job {run.job}"

    async def elsewhere() -> None:
        await until(lambda: waiting in run.shown.getvalue(), "waiting")
        for name in ("node-0", "node-1"):
            where = (name, run.job, store, str(run.options.out / "agents"))
            agents.append(await asyncio.create_subprocess_exec(sys.executable, "-c", code, *where))
        for agent in agents:
            assert await agent.wait() == 0
        # The stand-in's reports have no lease to end with.
        opened = open_store(store)
        names = [f"/castor/{run.job}/agents/node-{machine}" for machine in (0, 1)]
        await opened.transact(Txn((), tuple(map(Delete, names))))
        await opened.close()

    assert run.to_the_end(elsewhere()).outcome == "finished"
    assert run.result.iterations == 30
    assert keys(store) == []


def test_a_job_that_the_store_has_already_is_refused(tmp_path: Path, store: str) -> None:
    async def occupy() -> None:
        opened = open_store(store)
        await opened.transact(Txn((), (Put(f"/castor/{run.job}/spec", "{}"),)))
        await opened.close()

    run = Run(tmp_path, "3", store=store)
    asyncio.run(occupy())
    with pytest.raises(InputError, match="choose another name"):
        asyncio.run(run.run.run())
    assert keys(store) == [f"/castor/{run.job}/spec"]
    run.left_nothing()


def test_a_store_that_does_not_answer_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path, "3", store="etcd://127.0.0.1:1")
    with pytest.raises(InputError, match="cannot be asked"):
        asyncio.run(run.run.run())
    run.left_nothing()


def test_an_own_store_that_does_not_start_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "etcd"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\n[ "$1" = --version ] && echo etcd Version: 3.9.9\nexit 7\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    run = Run(tmp_path, "3")
    with pytest.raises(InputError, match="--store: the store did not start: etcd exited"):
        asyncio.run(run.run.run())
    run.left_nothing()


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path, "3")
    folder = run.run.folder
    folder.prepare(overwrite=False)
    folder.write_run(RunRecord(pid=os.getpid()))
    with pytest.raises(InputError, match="a run is going on there"):
        asyncio.run(run.run.run())
