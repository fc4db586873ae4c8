"""In what order ranks launch the rounds of checkpoints and training's collectives: real processes.

Each rank computes and prepares its exchanges at a pace of its own, by chance.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from castor_runtime.trainer.idle_spans import Gate, IdleSpans
from castor_runtime.trainer.joining import choose_launches
from castor_runtime.trainer.launches import ByPosition
from castor_runtime.trainer.traffic import Piece, Traffic

PLAIN: dict[str, Any] = {
    "device": "cpu",
    "scheme": "pipelined",
    "replicas": 2,
    "sizes": [9000, 777, 50, 1, 9001],
    "larger_by": 2000,  # rank 2 sends where others have nothing left
    "chunk": 4096,
    "spans_ns": [10_000, 20_000, 10_000, 15_000, 10],
    "link": [0, 8_000_000_000],  # a byte a nanosecond
    "layers": [4, 4, 1, 4, 0, 4],  # collectives of all ranks: some iterations have fewer
}
RunCases = Callable[[int, Path, list[dict[str, Any]]], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, run_cases: RunCases) -> list[dict[str, Any]]:
    cases = [PLAIN | {"name": name, "launches": name} for name in ("position", "time")]
    return run_cases(3, tmp_path_factory.mktemp("ranks"), cases)


def agree(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether what both launched came in one order."""
    return [what for what in one if what in other] == [what for what in other if what in one]


def same_order(ranks: list[dict[str, Any]], name: str) -> list[bool]:
    return [
        agree(mine, other)
        for one, another in combinations(ranks, 2)
        for mine, other in zip(one[name]["launched"], another[name]["launched"], strict=True)
    ]


def test_all_ranks_launch_in_one_order(ranks: list[dict[str, Any]]) -> None:
    for results in ranks:
        result = results["position"]
        assert "error" not in result, result["trace"]
        assert result["failed"] == []
        assert result["right"] == [[True] * PLAIN["replicas"]] * len(PLAIN["layers"])
    assert all(same_order(ranks, "position"))


def test_by_time_they_do_not(ranks: list[dict[str, Any]]) -> None:
    assert all(results["time"]["failed"] == [] for results in ranks)
    assert not all(same_order(ranks, "time"))


def test_a_round_follows_the_collective_that_its_span_begins_with(
    ranks: list[dict[str, Any]],
) -> None:
    for results in ranks:
        spans = results["position"]["spans"]
        assert set(spans) == {0, 1, 2, 3, 4}
        for launched, layers in zip(results["position"]["launched"], PLAIN["layers"], strict=True):
            assert sum(what.startswith("all") for what in launched) == layers
            for index, what in enumerate(launched):
                if not what.startswith("round"):
                    continue
                span = spans[int(what.split()[1])]
                before = launched[:index]
                if span > layers:  # the iteration has not so many collectives
                    assert "the update" in before
                    continue
                assert "the update" not in before
                others = [one for one in before if not one.startswith("round")]
                assert sum(one.startswith("all") for one in others) == span
                assert not others or others[-1].startswith("all"), "at once, before any other"


def test_the_rounds_of_unequal_parts_have_the_spans_of_the_latest() -> None:
    spans = {10: (0, 2), 20: (0, 1, 1), 30: (1,)}  # of a user's own scheme

    class Uneven(Traffic):
        def pieces(self, part_bytes: int) -> tuple[Piece, ...]:
            return tuple(Piece(span, 0, 0, 1) for span in spans[part_bytes])

    traffic = Uneven("pipelined", 4096, 1)
    assert traffic.round_spans([10, 20, 30, 10]) == (1, 2, 2)
    assert traffic.round_spans([20]) == (0, 1, 1)
    assert traffic.round_spans([]) == ()


class Asks:
    launches_in_order = True

    def __init__(self) -> None:
        self.followed: list[Any] = []

    def follow_training(self, work: Any) -> None:
        self.followed.append(work)


def by_position(device: Asks) -> ByPosition:
    launches = choose_launches(device, Gate())  # type: ignore[arg-type]  # all that is asked of it
    assert isinstance(launches, ByPosition)
    return launches


def test_rounds_follow_the_collective_that_they_are_launched_behind() -> None:
    device, launched = Asks(), list[int]()
    launches = by_position(device)
    launches.expect()
    launches.begin([0, 2, 2, 9], launched.append)
    launches.handed_over()
    assert (launched, device.followed) == ([0], [None])
    launches.passed("first")
    launches.passed("second")
    assert (launched, device.followed) == ([0, 1, 2], [None, "second"])
    launches.let_all_go()
    launches.let_all_go()
    assert (launched, device.followed) == ([0, 1, 2, 3], [None, "second", None])
    launches.passed("in the update")
    for index in range(4):
        launches.wait(index)


def test_what_cannot_be_launched_is_raised_in_the_exchanges_thread() -> None:
    launches = by_position(Asks())

    def launch(_index: int) -> None:
        raise OSError("no network")

    launches.expect()
    launches.begin([0], launch)
    launches.handed_over()
    with pytest.raises(RuntimeError, match="a round could not be launched: no network"):
        launches.wait(0)
    launches.let_all_go()  # and training is not held up


def test_training_does_not_wait_for_an_exchange_that_has_failed() -> None:
    launches = by_position(Asks())
    launches.expect()
    trains = threading.Thread(target=launches.handed_over, daemon=True)
    trains.start()
    launches.fail()
    trains.join(60)
    assert not trains.is_alive()


class Backend:
    def all_reduce(self, _tensor: torch.Tensor, group: Any = None) -> None:
        del group


def test_collectives_of_some_ranks_are_no_points_and_part_no_spans() -> None:
    gate, backend, passed = Gate(), Backend(), list[Any]()
    spans = IdleSpans(gate)
    spans.tell_passed(passed.append)
    spans.install(backend)
    spans.end_iteration()
    gate.close()
    given = torch.ones(1)
    for group in (None, dist.GroupMember.NON_GROUP_MEMBER, None):
        backend.all_reduce(given, group)
    assert passed == [None, None]
    assert gate.has_begun(2)
    assert not gate.has_begun(3)
    timeline, _ = spans.end_iteration()
    assert [one.with_all for one in timeline.collectives] == [True, False, True]
    first, some, second = timeline.collectives
    between_ns = some.issued_ns - first.ended_ns + second.issued_ns - some.ended_ns
    assert timeline.spans_ns[1] == between_ns
    assert len(timeline.spans_ns) == 3
