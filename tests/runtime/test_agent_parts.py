"""The agent's link to its trainers, its watchdog and its memory: real sockets and processes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from castor_configs.errors import InputError
from castor_policy.agents.events import Progressed, TrainerHung, WorkerEvent
from castor_policy.agents.job_spec import JobSpec
from castor_policy.job_options import MemoryOptions, TrafficOptions
from castor_policy.membership import WatchLimits
from castor_policy.option import OptionError
from castor_runtime.agent import memory as agent_memory
from castor_runtime.agent.memory import CheckpointMemory, RankLayout
from castor_runtime.agent.trainer_link import TrainerLink
from castor_runtime.agent.watchdog import Watchdog
from castor_runtime.arena import ControlBlock, Replica, Snapshot, TrainerPhase
from castor_runtime.transport import PartMissingError

pytestmark = pytest.mark.long  # together, not one by one

CHUNK = 4096
DATA = 3 * CHUNK + 100
FINGERPRINT = "ab" * 16


def spec(**changes: Any) -> JobSpec:
    job = f"t{secrets.token_hex(4)}"
    replicas = ((0, 1), (1, 0))
    return JobSpec(
        job,
        2,
        1,
        "group",
        replicas,
        "train.py",
        traffic=TrafficOptions(chunk_bytes=CHUNK),
        **changes,
    )


# ---- the link to the trainers ------------------------------------------------------------------


class Heard:
    """What a link has handed on."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, int, dict[str, Any]]] = []
        self.changed = asyncio.Condition()

    async def __call__(self, generation: int, rank: int, message: dict[str, Any]) -> None:
        async with self.changed:
            self.messages.append((generation, rank, message))
            self.changed.notify_all()

    async def count(self, number: int) -> None:
        async with self.changed:
            await asyncio.wait_for(
                self.changed.wait_for(lambda: len(self.messages) >= number), timeout=30
            )


async def connect(
    link: TrainerLink, *messages: dict[str, Any]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_unix_connection(link.address)
    for message in messages:
        writer.write(json.dumps(message).encode() + b"\n")
    return reader, writer


def hello(generation: int, rank: int) -> dict[str, Any]:
    return {"op": "hello", "generation": generation, "rank": rank, "pid": 1}


def test_trainers_are_heard_and_told_by_generation_and_rank() -> None:
    async def talk() -> None:
        heard = Heard()
        link = TrainerLink("job", heard)
        await link.open()
        old, old_writer = await connect(link, hello(1, 0), {"op": "layout"})
        await heard.count(2)
        new, new_writer = await connect(link, {"op": "too early"}, hello(2, 0), {"op": "event"})
        await heard.count(4)
        assert [(g, r, m["op"]) for g, r, m in heard.messages] == [
            (1, 0, "hello"),
            (1, 0, "layout"),
            (2, 0, "hello"),
            (2, 0, "event"),
        ]
        assert link.tell(2, 0, {"op": "load"})
        assert json.loads(await new.readline()) == {"op": "load"}
        assert link.tell(1, 0, {"op": "stay"})
        assert json.loads(await old.readline()) == {"op": "stay"}
        assert not link.tell(1, 1, {"op": "load"})
        new_writer.close()
        while link.tell(2, 0, {"op": "load"}):
            await asyncio.sleep(0.01)
        await link.close()
        assert await old.read() == b""
        old_writer.close()

    asyncio.run(talk())


def test_a_trainer_that_goes_on_is_known_by_the_generation_that_it_said_last() -> None:
    async def talk() -> None:
        heard = Heard()
        link = TrainerLink("job", heard)
        await link.open()
        reader, writer = await connect(link, hello(1, 2), {"op": "left"}, hello(3, 2), {"op": "x"})
        await heard.count(4)
        assert [(g, m["op"]) for g, _, m in heard.messages] == [
            (1, "hello"),
            (1, "left"),
            (3, "hello"),
            (3, "x"),
        ]
        assert not link.tell(1, 2, {"op": "load"}), "an order of an older generation is not for it"
        assert link.tell(3, 2, {"op": "leave"})
        assert json.loads(await reader.readline()) == {"op": "leave"}
        writer.close()
        while link.tell(3, 2, {"op": "leave"}):
            await asyncio.sleep(0.01)
        await link.close()

    asyncio.run(talk())


CONNECTS = """
import socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect(sys.argv[1].replace("@", "\\0", 1))
try:
    link.sendall(b'{"op": "hello", "generation": 1, "rank": 0, "pid": 1}\\n')
    sys.stdout.write(repr(link.recv(100)))
except (ConnectionResetError, BrokenPipeError):
    sys.stdout.write("b''")
"""


def test_another_users_process_is_not_heard() -> None:
    async def talk() -> tuple[str, int]:
        heard = Heard()
        link = TrainerLink("job", heard)
        await link.open()
        stranger = await asyncio.create_subprocess_exec(
            "/usr/bin/env",
            "python3",
            "-c",
            CONNECTS,
            link.address.replace("\0", "@", 1),
            stdout=asyncio.subprocess.PIPE,
            # Only root can become somebody else; anybody else is somebody else for the agent.
            user=65534 if os.getuid() == 0 else None,
        )
        if os.getuid() != 0:
            await heard.count(1)
            await link.close()
        output, _ = await stranger.communicate()
        await link.close()
        return output.decode(), len(heard.messages)

    assert asyncio.run(talk()) == ("b''", int(os.getuid() != 0))


# ---- the watchdog ------------------------------------------------------------------------------

SLEEPS = "import time; time.sleep(600)"
BURNS = "while True: pass"


@contextmanager
def process(code: str) -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", code]) as running:
        try:
            yield running.pid
        finally:
            running.kill()


async def watch(
    control: ControlBlock, trainers: dict[int, int], *, beats: bool, seconds: float = 1.5
) -> list[WorkerEvent]:
    """Return what a watchdog says of the trainers; `beats`: their heartbeats count up."""
    seen: list[WorkerEvent] = []
    # Several times the interpreter's start, which is work and then stillness.
    watchdog = Watchdog(spec(limits=WatchLimits(hang_s=0.5)), control, seen.append)
    watchdog.watch(7, trainers)
    steps = round(seconds / 0.05)
    for _ in range(steps):
        await asyncio.sleep(0.05)
        for line in control.ranks:
            line.heartbeat += int(beats)
    watchdog.stop()
    return seen


@pytest.fixture
def control() -> Iterator[ControlBlock]:
    block = ControlBlock.create(f"t{secrets.token_hex(4)}", "0" * 16, "node-0", 2)
    for line in block.ranks:
        line.heartbeat, line.phase = 1, TrainerPhase.TRAINING
    yield block
    block.close(unlink=True)


def test_a_process_that_stands_still_is_found(control: ControlBlock) -> None:
    with process(BURNS) as burns, process(BURNS) as stopped:
        os.kill(stopped, signal.SIGSTOP)
        # The other one is kept alive by its work alone: neither has a heartbeat.
        seen = asyncio.run(watch(control, {4: burns, 5: stopped}, beats=False, seconds=3))
    assert [(event.generation, event.rank) for event in seen if isinstance(event, TrainerHung)] == [
        (7, 5)
    ]


def test_a_trainer_that_waits_but_beats_lives(control: ControlBlock) -> None:
    with process(SLEEPS) as one, process(SLEEPS) as other:
        assert asyncio.run(watch(control, {0: one, 1: other}, beats=True)) == []


def test_who_has_not_begun_or_has_finished_is_not_held_for_hung(control: ControlBlock) -> None:
    control.rank(0).heartbeat = 0
    control.rank(0).phase = TrainerPhase.STARTING
    control.rank(1).phase = TrainerPhase.FINISHED
    with process(SLEEPS) as one, process(SLEEPS) as other:
        assert asyncio.run(watch(control, {0: one, 1: other}, beats=False)) == []


def test_progress_is_what_all_trainers_have_ended(control: ControlBlock) -> None:
    control.rank(0).iteration = 12
    control.rank(1).iteration = 11
    control.rank(0).agreed, control.rank(1).agreed = 10, 11
    with process(SLEEPS) as one, process(SLEEPS) as other:
        seen = asyncio.run(watch(control, {0: one, 1: other}, beats=True, seconds=0.3))
    assert seen == [Progressed(7, 11, 10)]  # once: it does not change


# ---- checkpoint memory -------------------------------------------------------------------------


def layouts(data_bytes: int = DATA) -> dict[int, RankLayout]:
    return {rank: RankLayout(rank, data_bytes, 4096, CHUNK, FINGERPRINT) for rank in range(2)}


def fill(replica: Replica, iteration: int, byte: int) -> None:
    writing = replica.begin(iteration, 1, iteration - 1)
    writing.data[:] = bytes([byte]) * DATA
    writing.commit(b"meta")


@contextmanager
def memory(job: JobSpec, agent: str = "node-0") -> Iterator[CheckpointMemory]:
    held = CheckpointMemory(job, agent)
    try:
        yield held
    finally:
        held.close(unlink=True)


def test_a_layout_is_the_same_from_a_trainer_and_from_the_store() -> None:
    (layout, _) = layouts().values()
    assert RankLayout.from_message(json.loads(layout.to_json())) == layout
    assert layout.part(2).data_bytes == DATA


def test_what_is_held_outlives_the_agent_and_is_offered_again() -> None:
    job = spec()
    first = CheckpointMemory(job, "node-0")
    first.hold(0, layouts())
    fill(first.replica(0), 8, 1)
    fill(first.replica(0), 9, 2)
    assert first.holdings() == {0: (8, 9), 1: ()}
    first.close(unlink=False)
    with memory(job) as again:
        assert again.holdings() == {}
        again.hold(0, layouts())
        assert again.holdings() == {0: (8, 9), 1: ()}
        again.keep_only(8)
        assert again.holdings() == {0: (8,), 1: ()}
        assert again.memory_bytes > 4 * DATA
        again.forget()
        assert again.segments() == {}
        assert list(Path("/dev/shm").glob(f"castor-{job.job}-*")) == []


def test_memory_of_another_model_is_refused_by_name() -> None:
    job = spec()
    with memory(job) as held:
        held.hold(0, layouts())
        other = CheckpointMemory(job, "node-0")
        foreign = {r: RankLayout(r, DATA, 4096, CHUNK, "cd" * 16) for r in range(2)}
        with pytest.raises(Exception, match=f"castor-{job.job}-{job.run}-node-0-r0"):
            other.hold(0, foreign)
        other.close(unlink=False)


def test_a_damaged_copy_is_found_and_never_offered_again() -> None:
    with memory(spec()) as held:
        held.hold(0, layouts())
        fill(held.replica(0), 8, 1)
        fill(held.replica(0), 9, 2)
        held.replica(0).snapshot(9).data[CHUNK + 1] ^= 1
        assert not asyncio.run(held.verify(0, 9))
        assert asyncio.run(held.verify(0, 8))
        assert not asyncio.run(held.verify(0, 7))
        assert held.holdings()[0] == (8,)
        with pytest.raises(PartMissingError):
            held.open(0, 9)
        assert bytes(held.open(0, 8).data[:3]) == b"\1\1\1"
        with pytest.raises(PartMissingError, match="node-0 holds no part of rank 5"):
            held.replica(5)


def test_the_final_state_is_the_newest_that_all_ranks_of_the_machine_have() -> None:
    with memory(spec()) as held:
        held.hold(1, layouts())
        with pytest.raises(LookupError, match="machine 1 holds no complete iteration"):
            asyncio.run(held.final_digests(1))
        fill(held.replica(1), 20, 3)
        fill(held.replica(0), 21, 4)  # another machine's: not its to speak of
        digest = hashlib.sha256(bytes([3]) * DATA).hexdigest()
        assert asyncio.run(held.final_digests(1)) == (20, {1: digest})


def test_final_states_of_a_machines_ranks_are_hashed_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = threading.Barrier(2, timeout=60.0)

    def waits_for_the_other(snapshot: Snapshot) -> str:
        both.wait()
        return f"of {snapshot.rank}"

    monkeypatch.setattr(agent_memory, "_sha256", waits_for_the_other)
    job = replace(spec(), ranks_per_machine=2)
    with memory(job) as held:
        sizes = {r: RankLayout(r, DATA, 4096, CHUNK, FINGERPRINT) for r in range(4)}
        held.hold(1, sizes)
        for rank in (2, 3):
            fill(held.replica(rank), 20, rank)
        assert asyncio.run(held.final_digests(1)) == (20, {2: "of 2", 3: "of 3"})


def test_saving_memory_gives_the_own_part_one_buffer() -> None:
    with memory(spec(memory=MemoryOptions(mode="saving"))) as held:
        held.hold(1, layouts())
        assert [held.replica(rank).part.buffers for rank in (0, 1)] == [2, 1]


@pytest.mark.parametrize(
    ("limit_bytes", "mode", "said"),
    [
        (90000, "fast", r"What would fit: --memory saving, about 7\d\.\d+ KiB"),
        (60000, "fast", r"What would fit: --memory fast --replicas 1, about \d+\.\d+ KiB"),
        (60000, "saving", r"What would fit: --memory fast --replicas 1, about \d+\.\d+ KiB"),
        (20000, "saving", r"Not even one replica fits, about \d+\.\d+ KiB: more machines"),
    ],
)
def test_where_it_does_not_fit_a_sentence_says_what_would(
    limit_bytes: int, mode: str, said: str
) -> None:
    options = MemoryOptions(mode=mode, limit_bytes=limit_bytes)
    with memory(spec(memory=options)) as held, pytest.raises(InputError, match=said):
        held.hold(0, layouts())


def test_a_placement_that_saving_cannot_do_with_is_refused() -> None:
    alike = ((0, 1, 2), (1, 0, 3), (2, 0, 3), (3, 1, 2))
    with pytest.raises(OptionError, match="no two machines keep their replicas on the very same"):
        JobSpec("j", 4, 1, "own", alike, "train.py", memory=MemoryOptions(mode="saving"))
    JobSpec("j", 4, 1, "own", alike, "train.py")


def test_a_budget_that_does_not_hold_it_is_refused_with_its_numbers() -> None:
    with memory(spec(memory=MemoryOptions(limit_bytes=1 << 20))) as held:
        held.hold(0, layouts())
    with (
        memory(spec(memory=MemoryOptions(limit_bytes=60000))) as held,
        pytest.raises(InputError, match=r"(?s)part of rank 0, 2 buffers.*58\.594 KiB"),
    ):
        held.hold(0, layouts())
