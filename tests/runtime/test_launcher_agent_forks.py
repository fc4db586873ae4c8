"""The agents' fork server with real forks: agents start, end, are killed, and never outlive it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from castor_policy.agents.exit_codes import DO_NOT_REQUEUE, REFUSED
from castor_runtime.agent.options import AgentOptions
from castor_runtime.fork_server_link import ForkServerError
from castor_runtime.launcher.agent_fork_link import AgentExit, AgentForkLink
from castor_runtime.launcher.agent_fork_server import (
    CRASHED,
    options_from_json,
    options_to_json,
)
from castor_runtime.launcher.site import Place
from castor_runtime.launcher.supervisor import (
    RESTARTS_IN_A_ROW,
    Fate,
    RestartRule,
    Supervisor,
)
from castor_runtime.processes import descendants, is_alive

pytestmark = pytest.mark.long  # all of it starts real processes, many times

# What an agent does is named by its job.
AGENT = """
import os, sys, time
from pathlib import Path
from castor_configs.errors import InputError

LOADED = []

def preload(script):
    if script.name == "broken.py":
        raise ImportError("no module named gpus")
    LOADED.append(os.getpid())

def enter(host):
    print(f"entered {host} of {os.environ['SITE']}", flush=True)

def run_agent(options):
    print(f"{options.name} forked from {LOADED}: {os.getpid() not in LOADED}", flush=True)
    if options.job == "wait":
        if os.fork() == 0:
            time.sleep(60)
        (options.folder / "up").touch()
        time.sleep(60)
    if options.job == "refuse":
        raise InputError("too little memory")
    if options.job == "crash":
        raise RuntimeError("a fault in the agent")
    if options.job == "die-once":
        marker = options.folder / "died"
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), 9)
    return 0
"""


def place_of(name: str) -> Place:
    """Agent "a" runs on a host of its own, the others on this machine."""
    return Place({"SITE": "here"}, "standin_agent:enter", "host-7") if name == "a" else Place()


@asynccontextmanager
async def forking(
    tmp_path: Path, ends: Callable[[AgentExit], None], script: str = "train.py"
) -> AsyncIterator[AgentForkLink]:
    (tmp_path / "standin_agent.py").write_text(AGENT)
    link = AgentForkLink(
        tmp_path / script,
        tmp_path / "fork-server.log",
        ends,
        agent_main="standin_agent:run_agent",
        preload="standin_agent:preload",
        environment=dict(os.environ) | {"PYTHONPATH": str(tmp_path)},
        place=place_of,
    )
    try:
        await link.open()
        yield link
    finally:
        link.close()


def options(tmp_path: Path, name: str, job: str) -> AgentOptions:
    return AgentOptions(name=name, job=job, store="etcd://h:1", folder=tmp_path / "agents" / name)


async def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, f"still not {what}"
        await asyncio.sleep(0.005)


def run(work: Coroutine[None, None, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


def test_options_cross_the_link_unchanged(tmp_path: Path) -> None:
    given = AgentOptions(
        name="n", job="j", store="s", folder=tmp_path, standby=True, secret=tmp_path / "s"
    )
    assert options_from_json(options_to_json(given)) == given


def test_agents_end_as_they_ended_and_leave_their_words(tmp_path: Path) -> None:
    async def work() -> None:
        ends: list[AgentExit] = []
        async with forking(tmp_path, ends.append) as link:
            assert (await link.wait_ready())["threads"] == 1
            jobs = {"a": "end", "b": "refuse", "c": "crash"}
            pids = {name: await link.start(options(tmp_path, name, jobs[name])) for name in jobs}
            await until(lambda: len(ends) == 3, "ended")
            assert {end.name: end.pid for end in ends} == pids
            assert {end.name: end.code for end in ends} == {"a": 0, "b": REFUSED, "c": CRASHED}
            assert link.is_empty
        words = {name: (tmp_path / "agents" / name / "agent.log").read_text() for name in jobs}
        assert all(f"{name} forked from [{link.pid}]: True" in words[name] for name in jobs)
        assert words["a"].startswith("entered host-7 of here\n")
        assert "entered" not in words["b"]
        assert "castor: too little memory" in words["b"]
        assert "Traceback" not in words["b"]
        assert "RuntimeError: a fault in the agent" in words["c"]

    run(work())


def test_agents_and_all_below_them_die_with_the_fork_server(tmp_path: Path) -> None:
    async def work() -> None:
        ends: list[AgentExit] = []
        async with forking(tmp_path, ends.append) as link:
            await link.wait_ready()
            pid = await link.start(options(tmp_path, "a", "wait"))
            up = tmp_path / "agents" / "a" / "up"
            await until(up.exists, "up")
            below = descendants(pid)
            assert len(below) == 1
            assert os.getsid(pid) == pid
            with pytest.raises(ValueError, match="runs already"):
                await link.start(options(tmp_path, "a", "wait"))
            # An agent's orphans become the server's, so that closing it finds them.
            os.kill(pid, signal.SIGKILL)
            await until(lambda: ends == [AgentExit("a", pid, -9)], "told")
            await until(lambda: below[0] in descendants(link.pid), "adopted")
            again = await link.start(options(tmp_path, "b", "wait"))
            await until((tmp_path / "agents" / "b" / "up").exists, "up")
            tree = [link.pid, *descendants(link.pid)]
            assert {again, *below} <= set(tree)
        await until(lambda: not any(map(is_alive, tree)), "dead")

    run(work())


def test_the_end_of_the_fork_server_is_the_end_of_its_agents(tmp_path: Path) -> None:
    async def work() -> None:
        ends: list[AgentExit] = []
        async with forking(tmp_path, ends.append) as link:
            await link.wait_ready()
            pid = await link.start(options(tmp_path, "a", "wait"))
            os.kill(link.pid, signal.SIGKILL)
            await until(lambda: len(ends) == 1, "told")
            await until(lambda: not is_alive(pid), "dead")
            with pytest.raises(ForkServerError, match="has died"):
                await link.start(options(tmp_path, "b", "end"))

    run(work())


def test_an_import_that_fails_is_told_with_its_reason(tmp_path: Path) -> None:
    async def work() -> None:
        async with forking(tmp_path, lambda _: None, "broken.py") as link:
            with pytest.raises(ForkServerError, match="no module named gpus"):
                await link.wait_ready()
        assert "Traceback" in (tmp_path / "fork-server.log").read_text()

    run(work())


def test_an_agent_that_dies_alone_is_started_again_and_a_machine_is_not(tmp_path: Path) -> None:
    def agent_options(name: str, standby: bool) -> AgentOptions:
        assert standby == name.startswith("spare")
        return options(tmp_path, name, jobs[name])

    jobs = {"a": "die-once", "b": "wait", "spare-0": "end"}

    async def work() -> None:
        said: list[str] = []

        def ended(end: AgentExit) -> None:
            supervisor.exited(end)

        async with forking(tmp_path, ended) as link:
            supervisor = Supervisor(link, agent_options, said.append)
            await link.wait_ready()
            await supervisor.start("a")
            await until(lambda: supervisor.codes == {"a": 0}, "ended well")
            assert said == ["agent a died (killed by signal 9); it is restarted"]
            await supervisor.start("b")
            await until((tmp_path / "agents" / "b" / "up").exists, "up")
            assert not supervisor.idle
            supervisor.doom("b")
            os.kill(link.pids["b"], signal.SIGKILL)
            await until(lambda: supervisor.idle, "idle")
            assert said[1:] == ["machine of agent b is gone"]
            assert await supervisor.provide() == "spare-0"
            await until(lambda: supervisor.codes == {"a": 0, "spare-0": 0}, "ended")
            await supervisor.close()

    run(work())


def test_an_agent_that_dies_again_and_again_is_given_up() -> None:
    rule = RestartRule()
    assert [rule.fate("a", -11) for _ in range(RESTARTS_IN_A_ROW)] == [Fate.RESTART] * 5
    rule.progressed()
    assert [rule.fate("a", CRASHED) for _ in range(RESTARTS_IN_A_ROW)] == [Fate.RESTART] * 5
    assert rule.fate("a", -9) == Fate.GIVEN_UP
    assert rule.fate("b", -9) == Fate.RESTART
    assert [rule.fate("b", code) for code in (0, 1, REFUSED, DO_NOT_REQUEUE)] == [Fate.ENDED] * 4
    rule.doomed.add("b")
    assert rule.fate("b", -9) == Fate.LOST
