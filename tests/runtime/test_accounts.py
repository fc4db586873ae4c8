"""What happened in a job is told by its agents, from anywhere: live ones, and ones that have ended.

Servers of agents on this machine, whose clocks are wrong by as much as a test says; the store is in
memory.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from castor_policy.agents.agent_report import AgentReport, Life, State
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.store_keys import accounts_prefix, agents_prefix, plan_key, spec_key
from castor_policy.store import Put, Txn
from castor_records.account import Account
from castor_records.events.event import Event, of_kind
from castor_records.events.failures import Detected, Planned, Resumed, Retrieved, RunStarted
from castor_records.events.storing import ClockMeasured, RootElected
from castor_records.events.training import IterationEnded
from castor_runtime.agent.clock_watch import watch_clock
from castor_runtime.agent.event_log import EventLog, put_other_run_away
from castor_runtime.agent.options import AgentOptions
from castor_runtime.agent.own_account import OwnAccount
from castor_runtime.launcher.accounts import Accounts, read_accounts
from castor_runtime.launcher.job_view import JobView, read_view
from castor_runtime.launcher.status import status_document
from castor_runtime.launcher.whole_logs import WholeLogs, read_whole_logs
from castor_runtime.transport import JobSecret, PartMissingError, PeerClient, PeerServer
from castor_sim.model_store import ModelStore
from castor_sim.store_model import StoreModel

T = TypeVar("T")

SECRET = JobSecret(b"a secret of this job")
SPEC = JobSpec(
    job="j",
    machines=2,
    ranks_per_machine=1,
    placement="group",
    replicas=((0, 1), (1, 0)),
    script="train.py",
    started_ns=time.time_ns(),
)
S = 1_000_000_000


class Nothing:
    def open(self, rank: int, iteration: int) -> Any:
        raise PartMissingError(f"no part of rank {rank}, iteration {iteration}")


@dataclass
class Agent:
    """What is needed of an agent so that it can be asked."""

    name: str
    folder: Path
    ahead_s: float
    log: EventLog
    account: OwnAccount
    server: PeerServer

    def clock_ns(self) -> int:
        return time.time_ns() + round(self.ahead_s * S)

    def tell(self, event: Event, at_s: float) -> None:
        """Log an event that happens at that time, by this host's clock."""
        self.log.write(event, SPEC.started_ns + round((at_s + self.ahead_s) * S))


@dataclass
class Job:
    """A job in a store, and agents of it."""

    folder: Path
    store: ModelStore
    stack: AsyncExitStack
    said: list[str] = field(default_factory=list)
    phase: Phase = Phase.LOAD

    async def agent(self, name: str, ahead_s: float = 0.0, *, alive: bool = True) -> Agent:
        folder = self.folder / name

        def clock_ns() -> int:
            return time.time_ns() + round(ahead_s * S)

        log = EventLog(folder / "events.jsonl", SPEC.started_ns, clock_ns)
        self.stack.callback(log.close)
        options = AgentOptions(name, "j", "", folder)
        account = OwnAccount(options, SPEC, log, self.store, self.said.append)
        server = PeerServer(
            "127.0.0.1",
            credentials=SECRET,
            run=SPEC.run,
            source=Nothing(),
            status=dict,
            told=replace(account.told, clock_ns=clock_ns),
        )
        address = await self.stack.enter_async_context(server) and server.address
        if alive:
            await self.report(name, address)
        return Agent(name, folder, ahead_s, log, account, server)

    async def report(self, name: str, address: str) -> None:
        report = AgentReport(name, "1", False, address, 1, State.RUNNING, life=Life(host="h"))
        await self.put(agents_prefix("j") + name, report.to_json())

    async def put(self, key: str, value: str) -> None:
        await self.store.transact(Txn((), (Put(key, value),)))

    async def told(self, credentials: JobSecret | None = SECRET) -> tuple[JobView, Accounts]:
        view = await read_view(self.store, "j")
        return view, await read_accounts(self.store, view, credentials)


def in_job(folder: Path, do: Callable[[Job], Awaitable[T]], phase: Phase = Phase.LOAD) -> T:
    async def run() -> T:
        store = ModelStore(StoreModel(), time.monotonic, poll_s=0.002)
        async with AsyncExitStack() as stack:
            job = Job(folder, store, stack)
            await job.put(spec_key("j"), SPEC.to_json())
            plan = Plan(1, 1, phase, ("a", "b"), ("1", "1"))
            await job.put(plan_key("j"), plan.to_json())
            return await do(job)

    return asyncio.run(run())


async def compare_clocks(of: Agent, reference: Agent) -> None:
    """Have an agent measure once how far its clock is from another's."""
    plan = Plan(
        1,
        1,
        Phase.LOAD,
        (reference.name, of.name),
        ("1", "1"),
        addresses=(reference.server.address, of.server.address),
    )
    client = PeerClient(SECRET, SPEC.run)
    watching = asyncio.create_task(
        watch_clock(
            of.name,
            lambda: plan,
            client,
            of.log,
            look_s=0.01,
            spread_s=(0, 0),
            clock_ns=of.clock_ns,
        )
    )
    async with asyncio.timeout(60):
        while not list(of_kind(of.log.history.entries, ClockMeasured)):
            await asyncio.sleep(0.01)
    watching.cancel()


def test_events_are_in_order_although_clocks_are_five_seconds_apart(tmp_path: Path) -> None:
    async def happen(job: Job) -> None:
        a, b = await job.agent("a"), await job.agent("b", ahead_s=5.0)
        for at_s in (1.0, 3.0):
            a.tell(RootElected(agent=f"{at_s}", term=1), at_s)
        for at_s in (0.0, 2.0, 4.0):
            b.tell(RootElected(agent=f"{at_s}", term=1), at_s)
        _, before = await job.told()
        order = [entry.event.agent for entry in of_kind(before.entries(), RootElected)]
        assert order == ["1.0", "3.0", "0.0", "2.0", "4.0"]
        await compare_clocks(b, a)
        view, accounts = await job.told()
        told = [(who, e.event.agent) for who, e in accounts.told() if e.event.kind != CLOCK]
        assert told == [("b", "0.0"), ("a", "1.0"), ("b", "2.0"), ("a", "3.0"), ("b", "4.0")]
        clocks = status_document(view, None, None, accounts)["clocks"]
        assert clocks["b"]["reference"] == "a"
        assert clocks["b"]["offset_s"] == pytest.approx(-5.0, abs=2)
        assert 0 < clocks["b"]["uncertainty_s"] < 2
        assert clocks["a"]["offset_s"] == 0

    in_job(tmp_path, happen)


CLOCK = ClockMeasured.kind


def recovery(a: Agent, b: Agent) -> None:
    """Let the agents tell of a recovery."""
    for iteration in range(1, 20):
        a.tell(IterationEnded(iteration=iteration, generation=1, rank=0), iteration / 10)
    a.tell(Detected(generation=2, machine=1, agent="b", cause="its lease expired"), 2.5)
    a.tell(Planned(generation=2, iteration=19, tier="peer", term=1), 2.6)
    b.tell(
        Retrieved(
            generation=2,
            machine=1,
            rank=1,
            own=True,
            iteration=19,
            source="peer:0",
            bytes=1,
            seconds=0.1,
        ),
        2.8,
    )
    for rank, agent in enumerate((a, b)):
        agent.tell(Resumed(generation=2, rank=rank, iteration=19), 2.9)
    a.tell(IterationEnded(iteration=20, generation=2, rank=0), 3.0)


def test_a_status_from_elsewhere_is_as_complete_as_one_from_the_run_folder(tmp_path: Path) -> None:
    async def happen(job: Job) -> None:
        a, b = await job.agent("a"), await job.agent("b")
        recovery(a, b)
        view, accounts = await job.told()
        (one,) = status_document(view, None, None, accounts)["recoveries"]
        assert one["seconds"]["detection"] == pytest.approx(0.6)
        assert one["sources"] == {"1": "peer:0"}
        assert accounts.unreached == {}
        assert status_document(view, None)["recoveries"] == []

    in_job(tmp_path, happen)


def test_an_agent_that_cannot_be_reached_is_named_and_the_rest_is_told(tmp_path: Path) -> None:
    async def happen(job: Job) -> None:
        a = await job.agent("a")
        a.tell(RootElected(agent="a", term=1), 1.0)
        await job.report("b", "127.0.0.1:1")
        await job.report("c", "nowhere")
        view, accounts = await job.told()
        assert [e.event for _, e in accounts.told()] == [RootElected(agent="a", term=1)]
        assert list(accounts.unreached) == ["b", "c"]
        assert accounts.unreached["b"].startswith("127.0.0.1:1: ")
        document = status_document(view, None, None, accounts)
        assert document["unreached"] == accounts.unreached
        stranger = JobSecret(b"another secret!!")
        assert "does not know this job's secret" in (await job.told(stranger))[1].unreached["a"]

    in_job(tmp_path, happen)


def test_what_an_agent_has_left_in_the_store_is_told_after_its_end(tmp_path: Path) -> None:
    async def happen(job: Job) -> None:
        a, b = await job.agent("a"), await job.agent("b", alive=False)
        recovery(a, b)
        (b.folder / "final.json").write_text(json.dumps({"iteration": 20, "ranks": {"1": "x"}}))
        await b.account.leave()
        await b.server.close()
        _, accounts = await job.told()
        left = accounts.by_agent["b"]
        assert (left.folder, left.final) == (str(b.folder), {"iteration": 20, "ranks": {"1": "x"}})
        assert list(left.entries) == b.log.history.entries
        # What other runs of this name have left is not this one's.
        other = Account(agent="z", run="f" * 16)
        await job.put(accounts_prefix("j") + "z", other.to_text())
        await job.put(accounts_prefix("j") + "y", "no account")
        assert sorted((await job.told(None))[1].by_agent) == ["b"]
        assert job.said == []

    in_job(tmp_path, happen)


def test_whole_logs_are_read_from_those_that_live_and_of_others_it_is_said_where_they_are(
    tmp_path: Path,
) -> None:
    async def happen(job: Job) -> WholeLogs:
        a, b, gone = await job.agent("a"), await job.agent("b"), await job.agent("c", alive=False)
        for at_s in range(1, 4001):
            a.tell(IterationEnded(generation=1, rank=0, iteration=at_s, seconds=1.0), at_s)
            b.tell(IterationEnded(generation=1, rank=1, iteration=at_s, seconds=1.0), at_s)
        with (a.folder / "events.jsonl").open("a") as file:
            file.write('{"half a li')
        gone.tell(RootElected(agent="c", term=1), 5.0)
        await gone.account.leave()
        await job.report("d", "127.0.0.1:1")
        view = await read_view(job.store, "j")
        return await read_whole_logs(job.store, view, SECRET)

    whole = in_job(tmp_path, happen)
    kinds = Counter(type(entry.event) for entry in whole.entries)
    assert kinds == {RunStarted: 1, IterationEnded: 8000, RootElected: 1}
    times = [entry.time_ns for entry in whole.entries]
    assert times == sorted(times)
    of_c, of_d = whole.notes
    assert of_c.startswith("c: it is not alive; not all of its iterations are told here")
    assert str(tmp_path / "c") in of_c
    assert of_d.startswith("d: ")
    assert of_d.endswith("; nothing of it is told here")


def test_an_agent_that_cannot_leave_its_account_says_so_and_ends(tmp_path: Path) -> None:
    async def happen(job: Job) -> None:
        a = await job.agent("a")
        await job.store.close()
        await a.account.leave()
        assert len(job.said) == 1
        assert str(a.folder) in job.said[0]

    in_job(tmp_path, happen)


def test_what_was_decided_is_soon_in_the_store_and_a_recovery_once_it_has_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("castor_runtime.agent.own_account.SOON_S", 0.01)
    monkeypatch.setattr("castor_runtime.agent.own_account.LATER_S", (0.1, 0.2))

    async def happen(job: Job) -> None:
        a = await job.agent("a", alive=False)
        keeping = asyncio.create_task(a.account.keep_left(0.01))

        async def until(told: int) -> None:
            async with asyncio.timeout(60):
                while len(job_events(await job.told(None))) < told:
                    await asyncio.sleep(0.01)

        def job_events(told: tuple[JobView, Accounts]) -> list[Any]:
            return [entry.event for _, entry in told[1].told()]

        detected = Detected(generation=2, machine=1, agent="b", cause="its lease expired")
        a.tell(detected, 1.0)
        a.account.root_told()
        await until(1)
        # And what any agent tells, root or not, some time later.
        a.tell(Resumed(generation=2, rank=0, iteration=1), 2.0)
        assert job_events(await job.told(None)) == [detected]
        await until(2)
        # While nothing happens but iterations nothing is written.
        for iteration in range(1, 9):
            a.tell(IterationEnded(iteration=iteration, generation=2, rank=0), 3.0)
        await until(4)
        a.tell(IterationEnded(iteration=9, generation=2, rank=0), 4.0)
        await asyncio.sleep(0.4)
        assert job_events(await job.told(None))[-1].iteration == 8
        keeping.cancel()

    in_job(tmp_path, happen)


def test_another_run_in_the_same_folder_is_put_away(tmp_path: Path) -> None:
    (tmp_path / "agent.json").write_text(json.dumps({"run": "0" * 16}))
    (tmp_path / "events.jsonl").write_text("{}\n")
    (tmp_path / "final.json").write_text("{}")
    put_other_run_away(tmp_path, "0" * 16)
    assert (tmp_path / "final.json").exists()
    put_other_run_away(tmp_path, "1" * 16)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "agent.json",
        f"events-{'0' * 16}.jsonl",
    ]
