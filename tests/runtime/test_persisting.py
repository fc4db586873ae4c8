"""What an agent makes of several persistent tiers: one is slow, one fails, one is fine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from castor_policy.agents.events import PersistEnded, WorkerEvent
from castor_policy.agents.job_spec import JobSpec
from castor_policy.job_options import PersistenceOptions
from castor_records.event_log import EventTail
from castor_records.events.event import Entry, Event, of_kind
from castor_records.events.storing import Persisted, PersistFailed, PersistLeftOut
from castor_runtime.agent import persisting
from castor_runtime.agent.event_log import EventLog
from castor_runtime.agent.persisting import Described, Persister
from castor_runtime.persistent.retention import LEFT_OUT

SLOW, FAILS, FINE = "s3://slow/x", "s3://fails/x", "/fine"
NO_SPACE = "no space"


class Host:
    """Starts nothing: what writes to a tier ends as that tier's `ends` say; else when it is told.

    Attributes:
        ends: tier -> code.
        begun: what was started: tier and iteration.
    """

    def __init__(self) -> None:
        self.ends: dict[str, int] = {FINE: 0, FAILS: 1}
        self.begun: list[tuple[str, int]] = []
        self._ended: list[asyncio.Future[int]] = []

    async def start_call(
        self, name: str, function: str, arguments: Mapping[str, Any], log: Path
    ) -> int:
        assert function == "castor_runtime.persistent.machine_share:write"
        _, _, iteration, number = name.split()
        tier = (SLOW, FAILS, FINE)[int(number)]
        assert f'"tier": "{tier}"' in arguments["order"]
        self.begun.append((tier, int(iteration)))
        ended = asyncio.get_running_loop().create_future()
        if tier in self.ends:
            ended.set_result(self.ends[tier])
            if self.ends[tier] == 1:
                log.write_text(f"{NO_SPACE}\n", encoding="utf-8")
        self._ended.append(ended)
        return len(self._ended) - 1

    async def wait_end(self, pid: int) -> int:
        return await self._ended[pid]

    def end(self, tier: str, iteration: int, code: int) -> None:
        for begun, ended in zip(self.begun, self._ended, strict=True):
            if begun == (tier, iteration) and not ended.done():
                ended.set_result(code)


class Made:
    """A persister of a machine with one rank, and all that it says."""

    def __init__(self, folder: Path) -> None:
        tiers = PersistenceOptions(tiers=(SLOW, FAILS, FINE))
        spec = JobSpec("job", 1, 1, "group", ((0,),), "t.py", persistence=tiers)
        self.host = Host()
        self.told: list[PersistEnded] = []
        self._log = folder / "events.jsonl"
        self.log = EventLog(self._log, 0)
        self._persister = Persister(spec, folder, self.host, self.log, self._emit)  # type: ignore[arg-type]

    def _emit(self, event: WorkerEvent) -> None:
        assert isinstance(event, PersistEnded)
        self.told.append(event)

    async def write(self, iteration: int) -> asyncio.Task[None]:
        """Have it begun as the agent does, which does not wait; return once all else stands."""
        described = {0: Described((), "template")}
        writing = self._persister.write(1, iteration, 0, "ab" * 16, {0: "segment"}, described)
        task = asyncio.create_task(writing)
        await settle()
        return task

    def events(self) -> list[Entry[Event]]:
        return EventTail(self._log).read()


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    made = Made(tmp_path)
    yield made
    made.log.close()


def test_each_tier_gets_what_it_can_take_and_a_slow_one_holds_up_nobody(made: Made) -> None:
    async def run() -> None:
        first = await made.write(10)
        # It counts in one, while another has not even begun to answer; the one that fails is named.
        assert PersistEnded(10, f"{FAILS}: {NO_SPACE}", everywhere=True) in made.told
        second, third = await made.write(20), await made.write(30)
        assert [one.iteration for one in made.told if one.everywhere] == [10, 20, 30]
        assert [one.done() for one in (first, second)] == [False, False]
        await third
        # Two at a time at most, however long it takes.
        assert [i for tier, i in made.host.begun if tier == SLOW] == [10, 20]
        made.host.end(SLOW, 20, LEFT_OUT)
        made.host.end(SLOW, 10, 0)
        await asyncio.gather(first, second)
        made.host.ends[SLOW] = made.host.ends[FAILS] = 0
        await (await made.write(40))
        assert made.told[-1] == PersistEnded(40, "", everywhere=True)

    asyncio.run(run())
    for tier in (FAILS, FINE):
        assert [i for where, i in made.host.begun if where == tier] == [10, 20, 30, 40]
    events = made.events()
    persisted = {(one.event.where, one.event.iteration) for one in of_kind(events, Persisted)}
    fine = {(FINE, iteration) for iteration in (10, 20, 30, 40)}
    assert persisted == fine | {(SLOW, 10), (SLOW, 40), (FAILS, 40)}
    failed = [
        (one.event.where, one.event.iteration, one.event.cause)
        for one in of_kind(events, PersistFailed)
    ]
    assert failed == [(FAILS, iteration, NO_SPACE) for iteration in (10, 20, 30)]
    left_out = [(one.event.where, one.event.iteration) for one in of_kind(events, PersistLeftOut)]
    assert left_out == [(SLOW, 30), (SLOW, 20)]


def test_what_no_tier_takes_is_in_vain_and_may_be_tried_again(made: Made) -> None:
    made.host.ends = {SLOW: 1, FAILS: 1, FINE: 1}

    async def run() -> None:
        await (await made.write(10))
        assert made.told[-1].in_vain
        assert made.told[-1].reason.count(NO_SPACE) == 3
        made.host.ends[SLOW] = LEFT_OUT  # busy, which is no failure: it may take the next try
        await (await made.write(10))
        del made.host.ends[SLOW]
        made.host.ends[FINE] = LEFT_OUT
        stands = await made.write(10)
        made.host.ends[FINE] = 0  # it was busy for a moment, while the other does not answer
        await (await made.write(10))
        assert not stands.done()
        assert made.told[-1].everywhere
        made.host.end(SLOW, 10, 1)
        await (await made.write(10))  # it counts, so nobody needs it there

    asyncio.run(run())
    assert [one.in_vain for one in made.told].count(True) == 1
    assert [tier for tier, _ in made.host.begun].count(SLOW) == 3
    assert [tier for tier, _ in made.host.begun].count(FINE) == 4


def test_what_is_announced_and_never_comes_does_not_keep_out_what_is_held(made: Made) -> None:
    made.host.ends = {}

    async def run() -> None:
        announced = [await made.write(iteration) for iteration in (30, 40)]
        await made.write(20)  # where the trainers hold
        made.host.end(FINE, 20, 0)
        await settle()
        assert made.told == [PersistEnded(20, "", everywhere=True)]
        assert [one.done() for one in announced] == [False, False]

    asyncio.run(run())


def test_a_tier_that_stands_is_told_of_and_counts_as_failed(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persisting, "LATE_S", -1.0)
    made.host.ends[FINE] = 1

    async def run() -> None:
        first = await made.write(10)
        assert not any(one.in_vain for one in made.told)
        second = await made.write(20)
        assert f"{SLOW}: iteration 10 has been under way 0 s" in made.told[-1].reason
        made.host.end(SLOW, 20, LEFT_OUT)
        await second
        assert made.told[-1].in_vain
        made.host.end(SLOW, 10, 0)
        await first
        assert made.told[-1] == PersistEnded(10, made.told[-1].reason, everywhere=True)
        assert SLOW not in made.told[-1].reason

    asyncio.run(run())
