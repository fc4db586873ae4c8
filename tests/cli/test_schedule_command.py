"""castor schedule: Algorithm 2's chunks, span by span."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from castor.app import app
from castor_configs.errors import InputError

EXAMPLE = (
    "--idle-ms", "40,10,5,80", "--checkpoint", "1GB", "--replicas", "2", "--bandwidth", "100Gbps",
    "--alpha-us", "100", "--buffer", "128MB", "--sub-buffers", "4", "--mu", "0.8",
)  # fmt: skip


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["schedule", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def as_json(*arguments: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(run(*arguments, "--json"))
    return document


def test_the_example_by_hand() -> None:
    found = as_json(*EXAMPLE)
    spans = found["spans"]
    assert [span["idle_s"] for span in spans] == [0.040, 0.010, 0.005, 0.080]
    chunks = [chunk for span in spans for chunk in span["chunks"]]
    assert sum(chunk["bytes"] for chunk in chunks) == 10**9
    assert {chunk["replica"] for chunk in chunks} == {0}
    assert max(chunk["bytes"] for chunk in chunks) == 32 * 10**6
    # 32 ms of 40 hold 12 chunks of 0.1 + 2.56 ms; 80 us more hold none, alpha takes 100.
    assert [chunk["bytes"] for chunk in spans[0]["chunks"]] == [32_000_000] * 12
    # 4 ms of 5 hold one, and (1.34 - 0.1) ms of 12.5 GB/s.
    assert [chunk["bytes"] for chunk in spans[2]["chunks"]] == [32_000_000, 15_500_000]
    assert found["spill"] == {"bytes": 0, "busy_s": 0.0}
    assert found["fits"]


def test_what_fits_nowhere_spills_into_the_last_span() -> None:
    found = as_json(*EXAMPLE, "--checkpoint", "3GB")
    spans = found["spans"]
    assert sum(span["bytes"] for span in spans) == 3 * 10**9
    # 64 ms of the last hold 24 chunks, and 0.06 ms of 12.5 GB/s: what is beyond has spilled.
    meant = 24 * 32_000_000 + 750_000
    assert found["spill"]["bytes"] == spans[3]["bytes"] - meant
    assert found["update_delay_s"] == pytest.approx(spans[3]["busy_s"] - 0.080)
    assert found["spill"]["busy_s"] == pytest.approx(spans[3]["busy_s"] - 0.064)
    assert not found["fits"]
    assert "update waits" in run(*EXAMPLE, "--checkpoint", "3GB")


def test_three_replicas_send_two() -> None:
    found = as_json(*EXAMPLE, "--replicas", "3")
    sent = {0: 0, 1: 0}
    for span in found["spans"]:
        for chunk in span["chunks"]:
            sent[chunk["replica"]] += chunk["bytes"]
    assert sent == {0: 10**9, 1: 10**9}


def test_a_share_may_be_a_percentage() -> None:
    assert as_json(*EXAMPLE, "--mu", "80%") == as_json(*EXAMPLE)


def test_blocking_sends_upfront() -> None:
    found = as_json(*EXAMPLE, "--scheme", "blocking")
    assert sum(chunk["bytes"] for chunk in found["upfront"]["chunks"]) == 10**9
    assert all(span["chunks"] == [] for span in found["spans"])
    assert "Training waits" in run(*EXAMPLE, "--scheme", "blocking")


def test_a_slower_copy_sets_the_pace() -> None:
    assert as_json(*EXAMPLE, "--copy-bandwidth", "25Gbps")["spill"]["bytes"] > 0
    assert "costs training nothing" in run(*EXAMPLE, "--copy-bandwidth", "200Gbps")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--idle-ms", "40,x"), 'expected a number of ms, not "x"'),
        (("--idle-ms", "40,-1"), "0 ms or more"),
        (("--idle-ms", "1e400"), "up to 292 years"),
        (("--idle-ms", "40,nan"), "expected a number of ms"),
        (("--idle-ms", "1e99999999"), "up to 292 years"),
        (("--alpha-us", "1e-99999999"), "plain number of us"),
        (("--mu", "1.5"), "--mu: expected a share"),
        (("--mu", "1e99999999"), "--mu: expected a share"),
        (("--mu", "0"), "mu is 0"),
        (("--bandwidth", "0Gbps"), "more than 0 bits"),
        (("--bandwidth", "100GB"), "--bandwidth"),
        (("--alpha-us", "-1"), "0 us or more"),
        (("--buffer", "2B"), "at least one byte"),
        (("--buffer", "4B"), "1000000000 chunks"),
    ],
)
def test_a_fault_names_its_option(arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        run(*EXAMPLE, *arguments)
