"""The rounds of a checkpoint between real ranks over TCP, straight between their memories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from castor_policy.chunk_schedule import Link
from castor_policy.interleaving import EAGER, SCHEMES
from castor_runtime.trainer.traffic import Traffic

pytestmark = pytest.mark.long  # the ranks take seconds to start

PLAIN: dict[str, Any] = {
    "device": "cpu",
    "scheme": "eager",
    "replicas": 2,
    "sizes": [3000, 777, 50, 1, 5001],
    "larger_by": 0,
    "chunk": 4096,
    "spans_ns": None,
    "link": [0, 8_000_000_000],  # a byte a nanosecond
    "checkpoints": 3,
    "plays": False,
    "pause_s": 0.0,
    "leaves": -1,
}
SPANS_NS = [10_000, 20_000, 5_000, 10]
THREE: list[dict[str, Any]] = [
    PLAIN | {"name": "eager"},
    PLAIN | {"name": "eager-uneven", "larger_by": 999, "replicas": 3},
    *(
        PLAIN | {"name": scheme, "scheme": scheme, "spans_ns": SPANS_NS, "replicas": 3}
        for scheme in SCHEMES
    ),
    PLAIN
    | {
        "name": "uneven",
        "scheme": "pipelined",
        "spans_ns": SPANS_NS,
        "replicas": 3,
        "larger_by": 1501,
    },
    PLAIN | {"name": "local", "replicas": 1},
    PLAIN | {"name": "late", "scheme": "pipelined", "spans_ns": SPANS_NS, "pause_s": 0.5},
]
RunCases = Callable[[int, Path, list[dict[str, Any]]], list[dict[str, Any]]]
LOST = [PLAIN | {"name": "lost", "leaves": 1, "sizes": [200_000]}]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, run_cases: RunCases) -> list[dict[str, Any]]:
    return run_cases(3, tmp_path_factory.mktemp("three"), THREE)


@pytest.mark.parametrize("name", [case["name"] for case in THREE])
def test_every_replica_is_what_its_source_had(three: list[dict[str, Any]], name: str) -> None:
    (case,) = (case for case in THREE if case["name"] == name)
    for results in three:
        result = results[name]
        assert "error" not in result, result["trace"]
        assert result["right"] == [[True] * case["replicas"]] * case["checkpoints"]
        assert all(result["whole"])


@pytest.mark.parametrize("name", [case["name"] for case in THREE])
def test_all_bytes_are_counted_and_each_transfer_is_told_twice(
    three: list[dict[str, Any]], name: str
) -> None:
    for results in three:
        pieces = results[name]["pieces"]
        for sent_bytes, network_s, sent_s, captured_s, began, ended in results[name]["done"]:
            assert sent_bytes == sum(end - start for _, _, start, end in pieces)
            assert began == ended
            assert began >= len(pieces)
            assert captured_s == 0.0, "it was captured before the exchange"
            assert 0 <= network_s <= sent_s


def test_waiting_for_a_span_is_no_network_time(three: list[dict[str, Any]]) -> None:
    done = [one for results in three for one in results["late"]["done"]]
    assert all(sent_s >= 0.5 for _, _, sent_s, *_ in done)
    # A round is on the network here for as long as a peer is late, and on a busy machine one is.
    assert min(network_s / sent_s for _, network_s, sent_s, *_ in done) < 0.5


@pytest.mark.parametrize("name", ["eager", *SCHEMES])
def test_the_scheme_bounds_what_is_under_way(three: list[dict[str, Any]], name: str) -> None:
    found = [results[name]["most_under_way"] for results in three]
    if name == "unpipelined":
        assert found == [1, 1, 1]
    elif name == "naive":
        assert found == [len(results[name]["pieces"]) for results in three]
    else:
        assert all(1 <= most <= 4 for most in found)


def test_the_bound_is_p_but_for_two_schemes() -> None:
    link = Link(0, 10**9)

    def bound(scheme: str, link: Link | None) -> int | None:
        spans_ns = (1,) if link else ()
        return Traffic(scheme, 1, 1, spans_ns, link, sub_buffers=3).pieces_in_flight

    found = {name: bound(name, link) for name in SCHEMES}
    assert found == {"blocking": 3, "naive": None, "unpipelined": 1, "pipelined": 3}
    assert bound(EAGER, None) == 3
    # Until it is scheduled a job is eager.
    assert bound("naive", None) == 3


def test_a_lost_peer_is_an_error_and_no_hang(tmp_path: Path, run_cases: RunCases) -> None:
    (survivor,) = run_cases(2, tmp_path, LOST)
    assert "StreamError" in survivor["lost"]["error"]
