"""One part from several holders, real processes each, of which some die, stop, lie or are slow."""

from __future__ import annotations

import asyncio
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from castor_runtime.arena import PartLayout, Replica
from castor_runtime.arena.layout import SegmentOwner
from castor_runtime.transport import (
    CorruptPartError,
    FetchStats,
    PeerClient,
    PeerUnreachableError,
    Timeouts,
)

PROGRAM = Path(__file__).with_name("part_holder_program.py")
_SHARED = runpy.run_path(str(PROGRAM))
FINGERPRINT, ITERATION, RUN = _SHARED["FINGERPRINT"], _SHARED["ITERATION"], _SHARED["RUN"]
SECRET, content = _SHARED["SECRET"], _SHARED["content"]
SIZE, CHUNK = 3_000_000, 1 << 16
CHUNKS = -(-SIZE // CHUNK)

GOOD = {"is": "good"}
SLOW = {"is": "good", "pause_s": 0.02}

# rank: what one holder has of it, and what the other has.
CASES: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "damaged": (0, SLOW, {"is": "damaged"}),
    "missing": (1, GOOD, {}),
    "foreign": (2, GOOD, {"is": "foreign"}),
    "slow": (3, SLOW, GOOD),
    "other": (4, GOOD, {"is": "other"}),
    "first is other and damaged": (5, GOOD | {"answer_s": 0.5}, {"is": "other damaged"}),
    "both damaged": (6, {"is": "damaged"}, {"is": "damaged"}),
}


@contextmanager
def holder(folder: Path, parts: dict[int, dict[str, Any]]) -> Iterator[tuple[str, int]]:
    """Run a holder of these parts; give its address and process id."""
    folder.mkdir()
    held = json.dumps({rank: part for rank, part in parts.items() if part})
    command = [sys.executable, str(PROGRAM), str(folder), str(SIZE), str(CHUNK), held]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip(), process.pid
        finally:
            process.kill()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("holders")
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                holder(folder / str(number), {case[0]: case[1 + number] for case in CASES.values()})
            )[0]
            for number in (0, 1)
        ]


class Sink:
    """Where a part goes."""

    def __init__(self, rank: int, folder: Path) -> None:
        owner = SegmentOwner("job", RUN, "sink", FINGERPRINT)
        layout = PartLayout(rank, SIZE, 4096, CHUNK)
        self.rank = rank
        self.replica = Replica.create(f"sink-{rank}", owner, layout, folder=folder)
        self.writing: Any = self.replica.begin(ITERATION, 2, None)

    async def fetch(self, addresses: list[str], **options: Any) -> FetchStats:
        client = PeerClient(SECRET, RUN, **options)
        return await client.fetch(addresses, self.rank, ITERATION, FINGERPRINT, self.writing)

    def holds(self, seed: int = 0) -> bool:
        """Whether the part is complete, and what was stored under that seed."""
        assert self.replica.verify(ITERATION) == []
        return bytes(self.replica.snapshot(ITERATION).data) == content(self.rank, SIZE, seed)


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[Callable[[int], Sink]]:
    made: list[Sink] = []

    def make(rank: int) -> Sink:
        made.append(Sink(rank, tmp_path))
        return made[-1]

    yield make
    for one in made:
        one.writing = None
        one.replica.close()


def test_all_holders_serve_and_the_faster_one_more(two: list[str], sink: Any) -> None:
    into = sink(CASES["slow"][0])
    got = asyncio.run(into.fetch(two))
    assert into.holds()
    slow, fast = two
    assert list(got.chunks_from) == [fast, slow]
    assert got.chunks_from[fast] > 2 * got.chunks_from[slow] > 0
    assert sum(got.chunks_from.values()) == CHUNKS


@pytest.mark.parametrize("case", ["damaged", "missing", "foreign"])
def test_a_holder_that_has_not_got_it_leaves_all_of_it_to_the_other(
    case: str, two: list[str], sink: Any
) -> None:
    into = sink(CASES[case][0])
    got = asyncio.run(into.fetch(two))
    assert into.holds()
    assert got.chunks_from == {two[0]: CHUNKS}
    assert (got.asked_again > 0) == (case == "damaged")


def test_two_checkpoints_are_never_mixed(two: list[str], sink: Any) -> None:
    into = sink(CASES["other"][0])
    got = asyncio.run(into.fetch(two))
    assert into.holds(seed=two.index(next(iter(got.chunks_from))))
    assert len(got.chunks_from) == 1


def test_the_first_to_answer_may_be_the_wrong_one(two: list[str], sink: Any) -> None:
    into = sink(CASES["first is other and damaged"][0])
    got = asyncio.run(into.fetch(two))
    assert into.holds()
    assert got.chunks_from == {two[0]: CHUNKS}


def test_without_a_whole_copy_the_fetch_fails_and_names_all_holders(
    two: list[str], sink: Any
) -> None:
    into = sink(CASES["both damaged"][0])
    with pytest.raises(CorruptPartError, match=f"(?=.*{two[0]})(?=.*{two[1]})"):
        asyncio.run(into.fetch(two))
    assert into.replica.offered() == set()


def test_a_dead_holder_is_done_without_and_two_of_them_are_unreachable(
    two: list[str], sink: Any
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{taken.getsockname()[1]}"
        into = sink(CASES["missing"][0])
        assert asyncio.run(into.fetch([dead, two[0]])).chunks_from == {two[0]: CHUNKS}
        assert into.holds()
        again = sink(CASES["slow"][0])
        with pytest.raises(PeerUnreachableError, match=dead):
            asyncio.run(again.fetch([dead, dead]))


def test_an_address_that_answers_nothing_holds_nobody_up(two: list[str], sink: Any) -> None:
    # A full backlog: the kernel answers no further connection.
    with socket.socket() as silent, ExitStack() as stack:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(silent.getsockname())
        into = sink(CASES["missing"][0])
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        patient = Timeouts(connect_s=600.0, handshake_s=600.0)
        fetching = into.fetch([address, two[0]], timeouts=patient)
        asyncio.run(asyncio.wait_for(fetching, 30))
        assert into.holds()


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_a_holder_that_dies_or_stops_in_the_middle_leaves_the_rest_to_the_other(
    blow: signal.Signals, two: list[str], sink: Any, tmp_path: Path
) -> None:
    rank = CASES["slow"][0]
    into = sink(rank)
    patient = Timeouts(silence_s=600.0, patience_s=600.0)

    async def fetch(address: str, pid: int) -> FetchStats:
        fetching = asyncio.create_task(into.fetch([address, two[0]], timeouts=patient))
        while not any(into.writing.data[SIZE // 4 : SIZE // 3]):
            await asyncio.sleep(0.002)
        os.kill(pid, blow)
        return await asyncio.wait_for(fetching, 30)

    with holder(tmp_path / "struck", {rank: SLOW}) as (address, pid):
        try:
            got = asyncio.run(fetch(address, pid))
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    assert into.holds()
    assert got.chunks_from[address] > 0
    assert got.chunks_from[two[0]] > got.chunks_from[address]
