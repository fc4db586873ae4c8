"""What was replayed is what is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from castor_analysis.replayed import long_recoveries, replayed_json, replayed_words
from castor_sim.setup import Setup, load_setup
from castor_traces.trace import Failure, make_trace
from castor_traces.write import write_trace

DAY_NS = 86_400 * 10**9

TEXT = """
name = "replayed"
cluster = "p4d"
model = "gpt2-100b"
seeds = 2
[failures]
process = "trace"
trace = "own.csv"
[strategies.gemini]
[strategies.daly]
"""


def setup_of(folder: Path, *changes: str, machines: int = 16, every_ns: int = DAY_NS) -> Setup:
    failures = [
        Failure(number * every_ns, number % machines, "hardware", 3600 * 10**9)
        for number in range(1, 41)
    ]
    write_trace(make_trace("own", machines, 40 * DAY_NS, failures), folder / "own.csv")
    (folder / "experiment.toml").write_text(TEXT)
    return load_setup(folder / "experiment.toml", changes)


def test_a_whole_trace_is_said_whole(tmp_path: Path) -> None:
    setup = setup_of(tmp_path, 'replacement.operator="fleet"')
    assert replayed_words(setup) == "trace own: 40 failed machines, of 16, in 40.0 days"
    assert long_recoveries(setup) == []


def test_the_part_and_what_is_ignored_are_said(tmp_path: Path) -> None:
    setup = setup_of(
        tmp_path, 'duration="10d"', "failures.rescale=true", "failures.keep=0.5", machines=64
    )
    words = replayed_words(setup)
    assert "trace own: 40 failed machines, of 64, in 40.0 days" in words
    assert "of these the first 10.0 days, with 10" in words
    assert "thinned to 16 machines anew in each replication" in words
    assert "50% of them kept" in words
    assert "how long they were away is not used" in words
    part = replayed_json(setup)
    assert part is not None
    assert (part["span_s"], part["trace_span_s"]) == (864_000, 3_456_000)
    assert (part["failures"], part["trace_failures"]) == (10, 40)
    assert part["durations_used"] is False
    larger = setup_of(tmp_path, "failures.rescale=true", machines=8)
    assert "laid over itself to 16 machines" in replayed_words(larger)


def test_generated_failures_replay_nothing() -> None:
    setup = load_setup("gpt2-100b-p4d")
    assert replayed_json(setup) is None
    with pytest.raises(ValueError, match="no trace is replayed"):
        replayed_words(setup)


def test_a_recovery_that_outlasts_the_mtbf_is_pointed_out(tmp_path: Path) -> None:
    # Five minutes apart; Gemini's recovery alone takes longer by its warm-up and torch.save.
    often = setup_of(tmp_path, every_ns=300 * 10**9, machines=16)
    assert long_recoveries(often) == [], "40 failures in 40 days are rare however close they are"
    busy = load_setup("gpt2-100b-p4d", ("failures.per_day=500.0",))
    notes = long_recoveries(busy)
    assert any(note.startswith("gemini: a recovery takes about") for note in notes)
    assert all("between two interruptions" in note for note in notes)
