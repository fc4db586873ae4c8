"""Trainers that are kept for the next generation, as their agent does it: sockets and processes."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from castor_runtime.agent import parking as parking_module
from castor_runtime.agent.parking import Parking
from castor_runtime.agent.trainer_link import TrainerLink
from castor_runtime.trainer.agent_link import TrainerSettings

pytestmark = pytest.mark.long  # together, not one by one

PATIENCE_S = 30.0
SETTINGS = TrainerSettings(
    job="job",
    run="ab" * 8,
    rank=0,
    machine=0,
    local_rank=0,
    generation=1,
    ranks_per_machine=4,
    replicas=((0, 1), (1, 0)),
    socket="",
    control="",
    started_ns=0,
)


class Trainer:
    """The end of a link that a trainer has; its process is another one."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    async def connect(self, link: TrainerLink, generation: int) -> None:
        self.reader, self._writer = await asyncio.open_unix_connection(link.address)
        self.say("hello", generation=generation, rank=self.rank, pid=1)

    def say(self, op: str, **body: object) -> None:
        self._writer.write(json.dumps({"op": op, **body}).encode() + b"\n")

    async def hear(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(
            await asyncio.wait_for(self.reader.readline(), PATIENCE_S)
        )
        return told

    def close(self) -> None:
        self._writer.close()


class Agent:
    """A machine's link, and who of it is parked."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int, int]] = []
        self._changed = asyncio.Condition()
        self.link = TrainerLink("job", self._take)
        self.parking = Parking(self.link)

    async def _take(self, generation: int, rank: int, message: dict[str, Any]) -> None:
        if message["op"] in ("in_place", "hello", "left"):
            self.parking.hear(message["op"], generation, rank)
        async with self._changed:
            self.heard.append((message["op"], generation, rank))
            self._changed.notify_all()

    async def until_heard(self, op: str, generation: int, rank: int) -> None:
        async with self._changed:
            heard = self._changed.wait_for(lambda: (op, generation, rank) in self.heard)
            await asyncio.wait_for(heard, PATIENCE_S)

    async def park(self, pids: dict[int, int]) -> None:
        await asyncio.wait_for(self.parking.park(pids), PATIENCE_S)


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Four processes that do nothing."""
    nothing = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
    running = [subprocess.Popen(nothing) for _ in range(4)]
    yield running
    for one in running:
        one.kill()
        one.wait()


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is waited for that should not be is waited for beyond the test's patience."""
    monkeypatch.setattr(parking_module, "LEAVE_S", 10 * PATIENCE_S)


def test_who_can_leave_is_waited_for_and_who_is_stopped_or_dead_is_not(
    processes: list[subprocess.Popen[bytes]],
) -> None:
    leaves, unable, stopped, dead = range(4)
    processes[stopped].send_signal(signal.SIGSTOP)
    processes[dead].kill()
    processes[dead].wait()

    async def talk() -> None:
        agent = Agent()
        await agent.link.open()
        trainers = [Trainer(rank) for rank in range(4)]
        for trainer in trainers:
            await trainer.connect(agent.link, 1)
            if trainer.rank != unable:
                trainer.say("in_place")
                await agent.until_heard("in_place", 1, trainer.rank)
        await agent.until_heard("hello", 1, unable)

        parked = asyncio.create_task(
            agent.park({rank: one.pid for rank, one in enumerate(processes)})
        )
        assert await trainers[leaves].hear() == {"op": "leave", "generation": 1}
        # The others are given up at their first look; this one takes its time.
        await asyncio.sleep(0.2)
        assert not parked.done()
        trainers[leaves].say("left")
        await parked
        assert agent.parking.parked == {leaves}
        await agent.link.close()
        assert await trainers[unable].reader.read() == b"", "nobody asked it to leave"
        assert b"leave" in await trainers[stopped].reader.read()
        for trainer in trainers:
            trainer.close()

    asyncio.run(talk())


def test_a_trainer_that_joined_is_known_by_its_new_generation(
    processes: list[subprocess.Popen[bytes]],
) -> None:
    pids = {0: processes[0].pid}

    async def talk() -> None:
        agent = Agent()
        await agent.link.open()
        trainer = Trainer(0)
        await trainer.connect(agent.link, 1)
        trainer.say("in_place")
        trainer.say("left")  # it lost a peer, and was told by nobody
        await agent.until_heard("left", 1, 0)
        await agent.park(pids)
        assert agent.parking.parked == {0}

        # It is parked through a generation that comes to nothing.
        settings = replace(SETTINGS, generation=3)
        agent.parking.join(0, settings, "127.0.0.1:9")
        assert agent.parking.parked == frozenset()
        order = await trainer.hear()
        assert (order["op"], order["generation"], order["rendezvous"]) == ("join", 3, "127.0.0.1:9")
        assert TrainerSettings.from_json(order["settings"]) == settings

        trainer.say("hello", generation=3, rank=0, pid=1)
        await agent.until_heard("hello", 3, 0)
        assert not agent.link.tell(1, 0, {"op": "leave"}), "it is in that generation no more"
        parked = asyncio.create_task(agent.park(pids))
        assert await trainer.hear() == {"op": "leave", "generation": 3}
        trainer.say("left")
        await parked
        assert agent.parking.parked == {0}
        assert agent.heard[-1] == ("left", 3, 0)

        # A generation may be over before it has said hello there.
        agent.parking.join(0, replace(SETTINGS, generation=4), "127.0.0.1:9")
        parked = asyncio.create_task(agent.park(pids))
        assert (await trainer.hear())["op"] == "join"
        assert await trainer.hear() == {"op": "leave", "generation": 4}
        trainer.say("hello", generation=4, rank=0, pid=1)
        trainer.say("left")
        await parked
        assert agent.parking.parked == {0}

        agent.parking.forget()
        await agent.park(pids)  # killed since: nobody is waited for, nor parked
        assert agent.parking.parked == frozenset()
        await agent.link.close()
        trainer.close()

    asyncio.run(talk())
