"""Sub-buffers and one copy engine between the network and CPU memory: real ranks, real threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from castor_policy.chunk_schedule import Link
from castor_policy.interleaving import SCHEMES
from castor_runtime.state.sections import copy_section, lay_out, part_bytes
from castor_runtime.trainer.device import Receive
from castor_runtime.trainer.idle_spans import Gate
from castor_runtime.trainer.staged_device import Crossing, Span, StagedDevice
from castor_runtime.trainer.staging import BufferPool, Copy, LiveBytes
from castor_runtime.trainer.traffic import Traffic

pytestmark = pytest.mark.long  # the ranks take seconds to start

CHUNK = 4096
PLAIN: dict[str, Any] = {
    "device": "paced",
    "scheme": "eager",
    "replicas": 2,
    "sizes": [9000, 777, 50, 1, 9001],
    "larger_by": 0,
    "chunk": CHUNK,
    "copy_bps": 16_000_000,  # a chunk in 2 ms
    "spans_ns": None,
    "link": [0, 8_000_000_000],  # a byte a nanosecond
    "checkpoints": 2,
    "plays": False,
    "pause_s": 0.0,
    "leaves": -1,
}
SPANS_NS = [10_000, 20_000, 10_000, 15_000, 10]
CASES: list[dict[str, Any]] = [
    PLAIN | {"name": "eager"},
    PLAIN | {"name": "uneven", "larger_by": 999, "replicas": 3},
    PLAIN | {"name": "local", "replicas": 1},
    *(
        PLAIN | {"name": scheme, "scheme": scheme, "spans_ns": SPANS_NS, "replicas": 3}
        for scheme in SCHEMES
    ),
    *(
        PLAIN | {"name": f"{scheme}-beside", "scheme": scheme, "spans_ns": SPANS_NS, "plays": True}
        for scheme in ("naive", "unpipelined", "pipelined")
    ),
]
NAMES = [case["name"] for case in CASES]
CAPTURED: list[dict[str, Any]] = [
    case | {"name": f"captured-{case['name']}", "device": "captured", "streams": 2}
    for case in CASES
    if case["name"] in ("eager", "uneven", "local", "blocking", "pipelined")
]
CAPTURED += [
    CAPTURED[0]
    | {"name": "captured-late", "scheme": "pipelined", "spans_ns": SPANS_NS}
    # Training communicates until long after the copies are done.
    | {"pause_s": 1.0},
    CAPTURED[0]
    | {"name": "captured-striped", "streams": 3, "larger_by": 1000}
    | {"sizes": [2_000_000, 1, 77], "chunk": 4 << 20, "copy_bps": 8_000_000_000},
]
CAPTURED_NAMES = [case["name"] for case in CAPTURED]
RunCases = Callable[[int, Path, list[dict[str, Any]]], list[dict[str, Any]]]
LOST = [
    PLAIN | {"name": name, "device": name, "leaves": 1, "sizes": [200_000], **more}
    for name, more in (("paced", {}), ("captured", {"streams": 2}))
]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, run_cases: RunCases) -> list[dict[str, Any]]:
    return run_cases(3, tmp_path_factory.mktemp("ranks"), CASES + CAPTURED)


def intervals(result: dict[str, Any], kind: str) -> list[tuple[int, int, int, int]]:
    found = [tuple(row[1:]) for row in result["intervals"] if row[0] == kind]
    return sorted(found, key=lambda row: row[1])


def overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[1] < b[2] and b[1] < a[2]


@pytest.mark.parametrize("name", [*NAMES, *CAPTURED_NAMES])
def test_every_replica_is_what_its_source_had(ranks: list[dict[str, Any]], name: str) -> None:
    (case,) = (case for case in CASES + CAPTURED if case["name"] == name)
    for results in ranks:
        result = results[name]
        assert "error" not in result, result["trace"]
        assert result["right"] == [[True] * case["replicas"]] * case["checkpoints"]
        assert all(result["whole"])
        for *_, began, ended in result["done"]:
            assert began == ended


@pytest.mark.parametrize("name", [*NAMES, *CAPTURED_NAMES])
def test_all_bytes_sent_are_counted(ranks: list[dict[str, Any]], name: str) -> None:
    for results in ranks:
        size_bytes = sum(end - start for _, _, start, end in results[name]["pieces"])
        assert [done[0] for done in results[name]["done"]] == [size_bytes] * 2


@pytest.mark.parametrize("name", CAPTURED_NAMES)
def test_a_captured_state_is_free_once_its_copy_is_whole(
    ranks: list[dict[str, Any]], name: str
) -> None:
    # The program overwrites the live state as soon as it is told: what is sent later is the copy.
    for results in ranks:
        own = intervals(results[name], "own")
        assert [row[0] for row in own] == list(range(len(own)))
        assert results[name]["freed_ns"] >= own[-1][2]
        assert intervals(results[name], "receive") == intervals(results[name], "copy") == []
        if name == "captured-late":
            assert results[name]["freed_ns"] < results[name]["opened_ns"]


@pytest.mark.parametrize("name", NAMES)
def test_one_engine_copies_at_the_given_pace(ranks: list[dict[str, Any]], name: str) -> None:
    link = Link(20_000, PLAIN["copy_bps"])
    for results in ranks:
        result = results[name]
        copies = sorted(
            intervals(result, "copy") + intervals(result, "own"), key=lambda row: row[1]
        )
        assert all(before[2] <= after[1] for before, after in pairwise(copies))
        for _, began_ns, ended_ns, size_bytes in copies:
            assert ended_ns - began_ns >= link.transfer_ns(size_bytes)
        own = intervals(result, "own")
        assert [row[0] for row in own] == list(range(len(own)))
        assert all(row[3] == CHUNK for row in own[:-1])


@pytest.mark.parametrize("name", [*SCHEMES, "eager", "uneven"])
def test_a_chunk_is_copied_after_its_arrival(ranks: list[dict[str, Any]], name: str) -> None:
    for results in ranks:
        arrived = {row[0]: row[2] for row in intervals(results[name], "receive")}
        for number, began_ns, _, _ in intervals(results[name], "copy"):
            assert began_ns >= arrived[number]


def test_a_pipelined_receive_overlaps_a_copy_and_an_unpipelined_one_never_does(
    ranks: list[dict[str, Any]],
) -> None:
    def overlapping(name: str) -> list[int]:
        return [
            sum(
                overlap(receive, copy)
                for receive in intervals(results[name], "receive")
                for copy in intervals(results[name], "copy")
            )
            for results in ranks
        ]

    assert overlapping("unpipelined") == [0, 0, 0]
    assert overlapping("unpipelined-beside") == [0, 0, 0]
    # How many do depends on the machine's load; that any do, on the sub-buffers.
    assert min(overlapping("pipelined")) > 0
    assert min(overlapping("blocking")) > 0


def test_the_buffer_is_as_large_as_the_scheme_says(ranks: list[dict[str, Any]]) -> None:
    for results in ranks:
        for name in ("eager", "blocking", "pipelined", "pipelined-beside", "uneven"):
            assert 0 < results[name]["peak_bytes"] <= 4 * CHUNK
        assert results["pipelined"]["peak_bytes"] == 4 * CHUNK
        for name in ("unpipelined-beside", "naive-beside"):
            scheme = name.removesuffix("-beside")
            part = results[name]["pieces"][-1][3]
            traffic = Traffic(scheme, CHUNK, 1, tuple(SPANS_NS), Link(*PLAIN["link"]))
            schedule = traffic.schedule(part)
            assert schedule is not None
            assert results[name]["peak_bytes"] == schedule.buffer_bytes


def test_the_own_copy_keeps_to_training_traffic_until_all_is_sent(
    ranks: list[dict[str, Any]],
) -> None:
    for results in ranks:
        for name in ("naive-beside", "pipelined-beside", "unpipelined-beside"):
            result = results[name]
            log = result["log"]
            assert [what for what, _ in log] == ["occupy", "release"] * 4 + ["open"]
            busy = [(log[i][1], log[i + 1][1]) for i in range(0, 8, 2)]
            own = intervals(result, "own")
            chunks = intervals(result, "receive")
            all_sent_ns = max(row[2] for row in chunks)
            beside = 0
            for before, (_, released_ns) in zip([0, *[end for _, end in busy]], busy, strict=False):
                here = [row for row in own if before <= row[1] < released_ns]
                begun = [row for row in here if row[1] < min(released_ns, all_sent_ns)]
                idle = [row for row in begun if not any(a <= row[1] < b for a, b in busy)]
                # One that was decided on just before the traffic ended may begin just after.
                assert len(idle) <= (1 if before else 0)
                beside += len(here) - len(idle)
            assert beside >= 2 * 4


def test_chunks_wait_for_their_span(ranks: list[dict[str, Any]]) -> None:
    for results in ranks:
        for name in ("naive-beside", "pipelined-beside", "unpipelined-beside"):
            released = [0, *(at for what, at in results[name]["log"] if what == "release")]
            spans = [piece[0] for piece in results[name]["pieces"]]
            for number, began_ns, *_ in intervals(results[name], "receive"):
                assert began_ns >= released[spans[number]]
            assert max(spans) == 4


def test_a_blocking_own_copy_follows_the_chunks(ranks: list[dict[str, Any]]) -> None:
    for results in ranks:
        result = results["blocking"]
        all_sent_ns = max(row[2] for row in intervals(result, "receive"))
        assert all(row[1] >= all_sent_ns for row in intervals(result, "own"))
        for _, _, sent_s, captured_s, *_ in result["done"]:
            assert captured_s > sent_s


@pytest.mark.parametrize("device", ["paced", "captured"])
def test_a_lost_peer_is_an_error_and_no_hang(
    tmp_path: Path, run_cases: RunCases, device: str
) -> None:
    (survivor,) = run_cases(2, tmp_path, [case for case in LOST if case["name"] == device])
    # Raised where it is met first: in posting, or in waiting.
    error = {"paced": "RuntimeError", "captured": "StreamError"}[device]
    assert error in survivor[device]["error"]


class Broken:
    """A copy engine that fails, on a network that brings zeros."""

    copy_link = Link(1, 1)
    launches_in_order = False

    def pin(self, memory: torch.Tensor) -> None: ...

    def enter_thread(self) -> None: ...

    def allocate(self, size_bytes: int) -> torch.Tensor:
        return torch.zeros(size_bytes, dtype=torch.uint8)

    def exchange(self, *_given: Any) -> Crossing:
        def landed() -> list[Span]:
            raise OSError("no engine")

        return Crossing(lambda: (1, 2), landed, lambda wait: wait())

    def begin(self, _copies: Sequence[Copy]) -> Callable[[], Span]:
        raise OSError("no engine")


def test_a_copy_that_fails_is_raised_where_it_is_waited_for() -> None:
    device = StagedDevice(Broken(), Gate(), 8)
    arrived: list[tuple[int, int]] = []
    target = torch.ones(8, dtype=torch.uint8)
    sent = device.post(0, [], [], lambda *span: arrived.append(span), [])
    sent.wait()
    assert arrived == [(1, 2)]
    received = device.post(1, [], [Receive(1, target)], lambda *span: arrived.append(span), [])
    with pytest.raises(RuntimeError, match="a transfer failed: no engine"):
        received.wait()
    with pytest.raises(RuntimeError, match="a transfer failed: no engine"):
        device.wait_captured()
    device.close()


shapes = st.lists(
    st.tuples(
        st.sampled_from([torch.float32, torch.uint8, torch.bfloat16, torch.bool]),
        st.lists(st.integers(0, 9), max_size=3),
        st.sampled_from(["there", "missing", "transposed"]),
    ),
    max_size=6,
)


@given(shapes, st.integers(1, 100), st.integers(0, 2**32 - 1))
def test_live_bytes_are_the_part_in_pieces_of_any_size(
    wanted: list[tuple[torch.dtype, list[int], str]], step: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    sections = lay_out((f"t{i}", dtype, shape) for i, (dtype, shape, _) in enumerate(wanted))
    live: list[torch.Tensor | None] = []
    for dtype, shape, kind in wanted:
        if kind == "missing":
            live.append(None)
            continue
        turned = kind == "transposed" and len(shape) > 1
        stored = [*shape[:-2], shape[-1], shape[-2]] if turned else shape
        values = torch.randint(0, 200, stored, generator=generator).to(dtype)
        live.append(values.transpose(-1, -2) if turned else values)
    part = torch.zeros(part_bytes(sections), dtype=torch.uint8)
    for section, tensor in zip(sections, live, strict=True):
        copy_section(section, part, tensor)
    found = torch.full_like(part, 255)
    pieces = LiveBytes(sections, live, part.numel())
    for start in range(0, part.numel(), step):
        target = found[start : start + step]
        copies = pieces.copies(start, target)
        assert sum(to.numel() for _, to in copies) == target.numel()
        for source, to in copies:
            if source is None:
                to.zero_()
            else:
                to.copy_(source)
    assert torch.equal(found, part)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 50)), max_size=40))
def test_a_pool_hands_out_what_is_free_and_counts_its_peak(
    steps: list[tuple[bool, int]],
) -> None:
    pool = BufferPool(lambda size: torch.empty(size, dtype=torch.uint8), 1)
    taken: list[tuple[torch.Tensor, int]] = []
    now = peak = 0
    for gives_back, size in steps:
        if gives_back and taken:
            buffer, used = taken.pop(0)
            pool.give_back(buffer, used)
            now -= used
        else:
            buffer = pool.take(size)
            assert buffer.numel() >= size
            assert all(buffer.data_ptr() != other.data_ptr() for other, _ in taken)
            taken.append((buffer, size))
            now += size
        peak = max(peak, now)
    assert pool.peak_bytes == peak
