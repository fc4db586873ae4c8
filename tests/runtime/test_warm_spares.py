"""Which trainers get a spare beside them: real processes, whose memory the kernel tells."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from castor_records.event_log import merge
from castor_records.events.failures import SpareStarted
from castor_records.events.training import Warned
from castor_runtime.agent import warm_spares
from castor_runtime.agent.event_log import EventLog
from castor_runtime.agent.trainer_link import TrainerLink
from castor_runtime.agent.warm_spares import WarmSpares
from castor_runtime.trainer.agent_link import TrainerSettings

SETTINGS = TrainerSettings("j", "r", 0, 0, 0, 3, 2, ((0,), (1,)), "", "", 0, is_spare=True)
SPARE_PID = 4_000_000


class Machine:
    def __init__(self, folder: Path) -> None:
        self._log = EventLog(folder / "events.jsonl", 0)
        self._spares = WarmSpares(TrainerLink("j", lambda *_: None), self._log, folder)
        self.started: list[int] = []

    def keep(self, trainers: dict[int, int]) -> None:
        async def start(settings: TrainerSettings, _: Path) -> int:
            self.started.append(settings.rank)
            return SPARE_PID

        def settings_of(rank: int) -> TrainerSettings:
            return replace(SETTINGS, rank=rank, local_rank=rank)

        asyncio.run(self._spares.keep(trainers, start, settings_of, lambda: 9, begun_at=5))

    def close(self) -> None:
        self._log.close()

    def told(self) -> list[object]:
        return [entry.event for entry in merge([self._log.path])]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.close()


@pytest.fixture
def process() -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    made: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        made.append(subprocess.Popen(["sleep", "60"]))
        return made[-1]

    yield start
    for one in made:
        one.kill()
        one.wait()


def test_each_trainer_gets_one_and_what_it_takes_is_told_before(
    machine: Machine, process: Callable[[], subprocess.Popen[bytes]]
) -> None:
    pids = {rank: process().pid for rank in range(2)}
    machine.keep(pids)
    assert machine.started == [0, 1]
    for event, pid in zip(machine.told(), pids.values(), strict=True):
        assert isinstance(event, SpareStarted)
        assert 0 < event.memory_bytes <= psutil.Process(pid).memory_info().rss


def test_none_is_started_where_its_memory_is_not_free_and_that_is_said_once(
    machine: Machine,
    process: Callable[[], subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(warm_spares, "_unshared_bytes", lambda _: 1 << 60)
    trainers = {1: process().pid}
    machine.keep(trainers)
    machine.keep(trainers)
    assert machine.started == []
    (warned,) = machine.told()
    assert isinstance(warned, Warned)
    assert "no warm spare for rank 1: it would take 1152921504.6 GB" in warned.message


def test_a_trainer_that_dies_as_its_memory_is_asked_for_ends_it_quietly(
    machine: Machine, process: Callable[[], subprocess.Popen[bytes]]
) -> None:
    dead = process()
    dead.kill()
    dead.wait()
    machine.keep({0: dead.pid, 1: process().pid})
    assert (machine.started, machine.told()) == ([], [])
