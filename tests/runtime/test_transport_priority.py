"""A fetch that training waits for has the processor first, where the system lets it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import xxhash

from castor_policy.agents.effects import Fetch
from castor_policy.agents.events import Fetched, WorkerEvent
from castor_policy.agents.job_spec import JobSpec
from castor_policy.job_options import DEGRADED, WAIT, RecoveryOptions
from castor_runtime.agent.holding import Holding
from castor_runtime.transport import FetchStats, JobSecret, PeerClient, PeerServer
from castor_runtime.transport.priority import NICENESS_LESS, go_first

RUN = "0123456789abcdef"
SECRET = JobSecret(b"a secret of this job")
DATA = b"abcdefgh"
NOBODY = 65534


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def in_a_thread(call: Callable[[], int]) -> int:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


@dataclass
class Part:
    """Both ends of a fetch: notes how nice the threads are that send it and receive it."""

    senders: set[int] = field(default_factory=set)
    receivers: set[int] = field(default_factory=set)
    iteration: int = 1
    meta: bytes = b"m"
    digests: tuple[int, ...] = (xxhash.xxh3_64_intdigest(DATA),)
    chunk_bytes: int = len(DATA)
    meta_bytes: int = 1
    fingerprint: bytes = bytes(16)
    written: bytearray = field(default_factory=lambda: bytearray(len(DATA)))

    def open(self, rank: int, iteration: int) -> Sent:
        del rank, iteration
        return Sent(self)

    @property
    def data(self) -> memoryview:
        return memoryview(self.written)

    def make_room(self, meta_bytes: int) -> None:
        assert meta_bytes == self.meta_bytes
        self.receivers.add(niceness())  # asked by the thread of each stream

    def commit(self, meta: bytes, digests: Sequence[int]) -> None:
        assert (meta, tuple(digests)) == (self.meta, self.digests)


class Sent:
    """The part as its holder has it."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self.iteration = part.iteration
        self.meta = part.meta
        self.digests = part.digests
        self.chunk_bytes = part.chunk_bytes
        self.fingerprint = part.fingerprint
        self._sizes = 0

    @property
    def data(self) -> memoryview:
        self._sizes += 1
        if self._sizes > 1:  # once for its size, when it is opened, then to send it
            self._part.senders.add(niceness())
        return memoryview(DATA)


async def fetched(part: Part, *, urgent: bool) -> None:
    async with PeerServer(
        "127.0.0.1", run=RUN, credentials=SECRET, source=part, status=dict
    ) as server:
        client = PeerClient(SECRET, RUN)
        await client.fetch([server.address], 0, 1, part.fingerprint, part, urgent=urgent)


@pytest.mark.parametrize("urgent", [False, True])
def test_the_threads_of_an_urgent_fetch_go_first_and_no_others(urgent: bool) -> None:
    def after() -> int:
        go_first()
        return niceness()

    allowed = in_a_thread(after)
    assert allowed in (niceness(), max(-20, niceness() - NICENESS_LESS))
    expected = allowed if urgent else niceness()
    part = Part()
    asyncio.run(fetched(part, urgent=urgent))
    assert bytes(part.written) == DATA
    assert part.receivers == part.senders == {expected}
    assert in_a_thread(niceness) == niceness(), "only the fetch's own threads"


@pytest.mark.parametrize(
    ("redundancy", "own", "urgent"),
    [(WAIT, True, True), (WAIT, False, True), (DEGRADED, True, True), (DEGRADED, False, False)],
)
def test_what_training_waits_for_is_urgent(redundancy: str, own: bool, urgent: bool) -> None:
    asked: list[bool] = []

    class Client:
        async def fetch(self, *_: object, urgent: bool) -> FetchStats:
            asked.append(urgent)
            return FetchStats(1, 0.0, {"b:1": 1})

    class Memory:
        def replica(self, rank: int) -> Memory:
            assert rank == 0
            return self

        def begin(self, *_: object) -> None:
            return None

    async def fetch() -> None:
        spec = JobSpec(
            *("job", 2, 1, "group", ((0, 1), (1, 0)), "train.py"),
            recovery=RecoveryOptions(redundancy=redundancy),
        )
        nobody: Any = None
        memory: Any = Memory()
        client: Any = Client()
        heard: list[WorkerEvent] = []
        holding = Holding(spec, memory, nobody, client, heard.append, asyncio.create_task)
        holding.fetch(Fetch(1, 0, 5, (1,), ("b:1",), urgent=own))
        while not heard:
            await asyncio.sleep(0)
        assert isinstance(heard[0], Fetched)

    asyncio.run(fetch())
    assert asked == [urgent]


def test_who_may_not_go_first_fetches_as_before() -> None:
    child = os.fork()
    if not child:
        code = 1
        try:
            if not os.getuid():
                os.setuid(NOBODY)
            before = niceness()
            go_first()
            code = int(niceness() != before)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
