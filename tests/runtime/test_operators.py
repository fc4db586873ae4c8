"""Requests for machines, served through an operator: once, whatever fails, and told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from castor_configs.errors import InputError
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.machine_request import Progress, Served, served_prefix
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.store_keys import plan_key, requests_prefix, spec_key
from castor_policy.placement import place
from castor_policy.store import KeyValue, Put, Txn
from castor_runtime.background_tasks import BackgroundTasks
from castor_runtime.launcher.job_view import read_view
from castor_runtime.launcher.machine_requests import MachineRequests, waiting
from castor_runtime.launcher.operating import Operating
from castor_runtime.operators import check_operator, open_operator
from castor_runtime.operators.protocol import JobToJoin, OperatorError, Request
from castor_runtime.operators.serving import RequestServer
from castor_sim.model_store import ModelStore
from castor_sim.store_model import StoreModel

JOB = "j"
KEY = f"{requests_prefix(JOB)}3-1"
RECORD = f"{served_prefix(JOB)}3-1"
PLAN = Plan(3, 7, Phase.GATHER, ("node-0", ""), ("node-0.1", ""))


class Recording:
    """An operator that does what it is told, and remembers what it was asked."""

    patience_s = 100.0

    def __init__(self, answer: Callable[[Request], Awaitable[str]] | None = None) -> None:
        self.asked: list[str] = []
        self._answer = answer

    async def provide(self, request: Request) -> str:
        self.asked.append(request.agent)
        return request.agent if self._answer is None else await self._answer(request)


class Slow(ModelStore):
    """Answers a read when others have read the same."""

    async def get_prefix(self, prefix: str) -> tuple[list[KeyValue], int]:
        found = await super().get_prefix(prefix)
        await asyncio.sleep(0.01)
        return found


class Serving:
    """A store with a request, and servers that come and go."""

    def __init__(self) -> None:
        self.model = StoreModel()
        self.store = ModelStore(self.model, lambda: 0.0)
        self.said: list[str] = []
        self.tasks = BackgroundTasks()

    async def ask(self) -> None:
        await self.store.transact(Txn((), (Put(KEY, "node-0"),)))

    def server(self, operator: Recording) -> RequestServer:
        self.tasks = BackgroundTasks()
        return RequestServer(
            self.store, JOB, operator, spawn=self.tasks.spawn, say=self.said.append
        )

    async def serve(
        self, operator: Recording, plan: Plan | None = PLAN, agents: tuple[str, ...] = ()
    ) -> None:
        self.server(operator).serve([KEY], plan, agents)
        await asyncio.wait_for(self.tasks.wait(), 60)
        assert self.tasks.fatal == ""

    async def record(self) -> Served:
        ((record,), _) = await self.store.get_prefix(RECORD)
        return Served.from_json(record.value)

    async def stands(self) -> bool:
        return bool((await self.store.get_prefix(KEY))[0])


def run(scenario: Callable[[Serving], Awaitable[None]]) -> None:
    async def whole() -> None:
        await scenario(Serving())

    asyncio.run(whole())


def test_a_request_is_served_once_however_often_it_is_put_again() -> None:
    async def scenario(serving: Serving) -> None:
        operator = Recording()
        for _ in range(3):
            await serving.ask()
            await serving.serve(operator)
            assert not await serving.stands()
        assert operator.asked == ["spare-3-1-1"]
        assert serving.said == ["a machine was asked for: spare-3-1-1"]
        record = await serving.record()
        assert (record.progress, record.words) == (Progress.COMING, "spare-3-1-1")

    run(scenario)


def test_one_that_came_and_was_lost_or_that_nobody_waits_for_longer_is_asked_for_anew() -> None:
    async def scenario(serving: Serving) -> None:
        operator = Recording()
        await serving.ask()
        await serving.serve(operator)
        await serving.ask()
        await serving.serve(operator, agents=("spare-3-1-1",))
        assert operator.asked == ["spare-3-1-1", "spare-3-1-2"]
        operator.patience_s = 0.0
        await serving.ask()
        await serving.serve(operator)
        assert operator.asked[-1] == "spare-3-1-3"

    run(scenario)


@pytest.mark.parametrize(
    "plan", [replace(PLAN, phase=Phase.LOAD), replace(PLAN, generation=4)], ids=str
)
def test_a_request_that_is_over_is_taken_out_unserved(plan: Plan) -> None:
    async def scenario(serving: Serving) -> None:
        operator = Recording()
        await serving.ask()
        await serving.serve(operator, plan)
        assert operator.asked == []
        assert not await serving.stands()

    run(scenario)


def test_a_request_is_served_before_its_plan_is_seen() -> None:
    async def scenario(serving: Serving) -> None:
        operator = Recording()
        await serving.ask()
        await serving.serve(operator, replace(PLAN, generation=2, phase=Phase.LOAD))
        assert operator.asked == ["spare-3-1-1"]

    run(scenario)


def test_what_fails_is_told_and_tried_again_after_a_while() -> None:
    async def scenario(serving: Serving) -> None:
        times: list[float] = []

        async def twice(request: Request) -> str:
            times.append(time.monotonic())
            if len(times) < 2:
                raise OperatorError("no capacity")
            return "i-17"

        operator = Recording(twice)
        await serving.ask()
        await serving.serve(operator)
        assert operator.asked == ["spare-3-1-1", "spare-3-1-2"]
        assert times[1] - times[0] >= 1.0
        assert serving.said == [
            "no machine could be asked for (request 3-1, attempt 1): no capacity; again in 1 s",
            "a machine was asked for: i-17",
        ]

    run(scenario)


def test_a_server_that_died_while_it_asked_is_taken_over_from_without_a_second_machine() -> None:
    async def scenario(serving: Serving) -> None:
        asking = asyncio.Event()

        async def hangs(request: Request) -> str:
            asking.set()
            await asyncio.Event().wait()
            return ""

        await serving.ask()
        serving.server(Recording(hangs)).serve([KEY], PLAN, ())
        await asking.wait()
        await serving.tasks.end()
        heir = Recording()
        serving.server(heir).serve([KEY], PLAN, ())
        await asyncio.sleep(0.2)
        assert heir.asked == []  # the first may have asked; nobody knows
        await serving.tasks.end()
        heir.patience_s = 0.0
        await serving.serve(heir)
        assert heir.asked == ["spare-3-1-2"]

    run(scenario)


def test_of_two_servers_at_a_time_one_asks() -> None:
    async def scenario(serving: Serving) -> None:
        async def slowly(request: Request) -> str:
            await asyncio.sleep(0.1)
            return "i-17"

        serving.store = Slow(serving.model, lambda: 0.0)
        operators = [Recording(slowly), Recording(slowly)]
        await serving.ask()
        for operator in operators:
            serving.server(operator).serve([KEY], PLAN, ())
        await asyncio.sleep(0.4)
        assert sorted(len(one.asked) for one in operators) == [0, 1]
        await serving.tasks.end()

    run(scenario)


def test_a_store_that_does_not_answer_is_waited_for_with_what_was_asked_known() -> None:
    async def scenario(serving: Serving) -> None:
        async def meanwhile_gone(request: Request) -> str:
            serving.model.stop(0.0)
            asyncio.get_running_loop().call_later(0.3, serving.model.start, 0.0)
            return "i-17"

        operator = Recording(meanwhile_gone)
        await serving.ask()
        await serving.serve(operator)
        assert len(operator.asked) == 1
        assert (await serving.record()).progress == Progress.COMING

    run(scenario)


def test_an_error_of_a_strangers_operator_does_not_end_training() -> None:
    async def scenario(serving: Serving) -> None:
        async def broken(request: Request) -> str:
            raise KeyError("region")

        await serving.ask()
        await serving.serve(Recording(broken))
        assert "KeyError: 'region'; a machine may be on its way" in serving.said[0]

    run(scenario)


def job_of(tmp_path: Path) -> JobToJoin:
    secret = tmp_path / "secret"
    secret.write_text("s")
    return JobToJoin(JOB, "r1", "etcd://there:2379", secret, tmp_path / "operator")


def test_a_command_has_the_job_and_the_request_in_its_environment(tmp_path: Path) -> None:
    program = tmp_path / "provide.sh"
    words = " ".join(f"$CASTOR_{n}" for n in ("JOB", "RUN", "STORE", "SECRET", "REQUEST", "AGENT"))
    program.write_text(f"#!/bin/sh\nsleep 60 &\necho asked\necho $1 {words}\n")
    program.chmod(0o755)
    operator = open_operator(f"command:{program} 'big one'", job_of(tmp_path))
    began = time.monotonic()
    said = asyncio.run(operator.provide(Request("3-1", "spare-3-1-1")))
    assert said == f"big one j r1 etcd://there:2379 {tmp_path}/secret 3-1 spare-3-1-1"
    assert time.monotonic() - began < 30  # what it left in the background is not waited for
    assert "asked" in (tmp_path / "operator" / "spare-3-1-1.log").read_text()


def test_a_command_that_fails_says_what_it_said_last(tmp_path: Path) -> None:
    operator = open_operator("command:sh -c 'echo no quota >&2; exit 3'", job_of(tmp_path))
    with pytest.raises(OperatorError, match="sh ended with code 3: no quota"):
        asyncio.run(operator.provide(Request("3-1", "spare-3-1-1")))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("./provide.sh", "expected local:..., command:..., ec2:..., not './provide.sh'"),
        ("comand:./p", "expected one of local, command, ec2, not 'comand'; did you mean command"),
        ("command:", "there is no a program"),
        ("command:./missing.sh", "there is no ./missing.sh"),
        ("command:sh '", "No closing quotation"),
        ("local:", "goes with --agents local"),
    ],
)
def test_a_url_that_names_no_operator_is_refused(tmp_path: Path, url: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        open_operator(url, job_of(tmp_path))
    assert said in str(caught.value)
    assert check_operator("command:whatever") is None


def test_where_nobody_serves_that_is_said_once_and_shown(tmp_path: Path) -> None:
    async def scenario(serving: Serving) -> None:
        requests = MachineRequests(
            serving.store, "", job_of(tmp_path), spawn=serving.tasks.spawn, say=serving.said.append
        )
        await serving.ask()
        await serving.store.transact(Txn((), (Put(plan_key(JOB), PLAN.to_json()),)))
        view = await read_view(serving.store, JOB)
        requests.serve(view)
        requests.serve(view)
        (line,) = serving.said
        assert "there is no operator: start castor agent --standby on one" in line
        (shown,) = waiting(view)
        assert shown["request"] == "3-1"
        assert shown["progress"].startswith("there is no operator that serves it")
        await serving.serve(Recording())
        (shown,) = waiting(await read_view(serving.store, JOB))
        assert shown["progress"] == "it is on its way: spare-3-1-1"

    run(scenario)


def test_a_job_is_operated_apart_from_its_launcher_until_it_is_over(tmp_path: Path) -> None:
    rows = place("mixed", 2, 2).replicas
    spec = JobSpec(JOB, 2, 1, "group", rows, "t.py", run="0123456789abcdef")

    async def scenario(serving: Serving) -> None:
        put = (Put(spec_key(JOB), spec.to_json()), Put(plan_key(JOB), PLAN.to_json()))
        await serving.store.transact(Txn((), put))
        await serving.ask()
        url = "command:sh -c 'echo run $CASTOR_RUN'"
        operating = Operating(serving.store, url, job_of(tmp_path), serving.said.append)
        running = asyncio.create_task(operating.run())
        while await serving.stands():
            await asyncio.sleep(0.01)
        over = replace(PLAN, phase=Phase.FINISHED).to_json()
        await serving.store.transact(Txn((), (Put(plan_key(JOB), over),)))
        await asyncio.wait_for(running, 10)
        assert serving.said[1:] == [
            "a machine was asked for: run 0123456789abcdef",
            "job j is over: finished",
        ]

    run(scenario)
