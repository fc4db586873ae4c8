"""Events and their lines: what is written is read back the same, and what cannot be is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor_records.events.event import SCHEMA, Entry, Event
from castor_records.events.failures import Detected, Failed, Planned, Resumed, Retrieved
from castor_records.events.fields import specs_of
from castor_records.events.line import KINDS, parse_line
from castor_records.events.training import IterationEnded, SpansProfiled, Warned

LOGS = sorted((Path(__file__).parents[2] / "docs" / "images").glob("*.events.jsonl"))
"""Of real runs, as earlier versions wrote them."""

EVERY_KIND = [kind for _, kinds in KINDS for kind in kinds]


@st.composite
def events(draw: st.DrawFn) -> Event:
    kind = draw(st.sampled_from(EVERY_KIND))
    fields: dict[str, Any] = {}
    for spec in specs_of(kind):
        if spec.is_optional and draw(st.booleans()):
            continue
        one: st.SearchStrategy[Any] = st.integers(1, 2**62)
        if "number" in spec.words:
            one = st.one_of(one, st.floats(0.001, 1e12))
        elif "text" in spec.words:
            one = st.text()
        elif "true" in spec.words:
            one = st.booleans()
        fields[spec.name] = draw(st.tuples(one, one) if spec.is_tuple else one)
    return kind(**fields)


@given(st.integers(0, 2**63 - 1), events())
def test_a_line_is_read_back_as_the_event_that_was_written(time_ns: int, event: Event) -> None:
    line = Entry(time_ns, event).to_line()
    assert "\n" not in line
    assert "\r" not in line
    assert parse_line(line) == Entry(time_ns, event)
    record = json.loads(line)
    assert list(record)[:3] == ["schema", "time_ns", "kind"]
    assert (record["schema"], record["kind"]) == (SCHEMA, event.kind)


@pytest.mark.parametrize("log", LOGS, ids=lambda log: log.name)
def test_the_logs_of_earlier_versions_are_read_and_written_with_the_same_fields(log: Path) -> None:
    for line in log.read_text(encoding="utf-8").splitlines():
        entry = parse_line(line)
        assert entry is not None
        assert _told(entry.to_line()) == _told(line)


def _told(line: str) -> dict[str, Any]:
    """Return what a line says; what it says not to know may be a field of a later version."""
    return {name: value for name, value in json.loads(line).items() if value is not None}


def test_what_is_not_known_is_left_out_unless_it_tells_something() -> None:
    def keys(event: Event) -> list[str]:
        return list(json.loads(Entry(1, event).to_line()))[3:]

    assert keys(Detected()) == []
    nobody = Detected(generation=2, failure="software", how="unknown", agent="", cause="?", seen=())
    shown = ["generation", "failure", "how", "machine", "rank", "agent", "cause", "seen"]
    assert keys(nobody) == shown
    assert keys(Failed(machine=1, position=1, failure="hardware")) == [
        "machine",
        "position",
        "failure",
    ]
    assert "rank" in keys(Failed(failure="software", target="store"))
    assert "loss" in keys(IterationEnded(generation=1, rank=0, iteration=1))


@pytest.mark.parametrize(
    ("event", "fields"),
    [
        (
            Failed(machine=2, position=1, failure="hardware"),
            '"failure","machine":2,"position":1,"failure":"hardware"',
        ),
        (Detected(), '"detected"'),
        (
            Planned(iteration=2, tier="peer", lost=1),
            '"planned","iteration":2,"tier":"peer","lost":1',
        ),
        (Retrieved(iteration=2), '"retrieved","iteration":2'),
        (
            Resumed(iteration=2, tier="peer", lost_progress_ns=5),
            '"resumed","iteration":2,"tier":"peer","lost_progress_ns":5',
        ),
        (
            Planned(generation=2, iteration=9, tier="storage", term=4),
            '"planned","generation":2,"iteration":9,"tier":"storage","term":4',
        ),
    ],
)
def test_a_line_is_this_to_the_letter(event: Event, fields: str) -> None:
    assert Entry(7, event).to_line() == f'{{"schema":1,"time_ns":7,"kind":{fields}}}'


def test_an_unknown_kind_is_skipped_and_so_is_an_unknown_field() -> None:
    assert parse_line('{"schema":1,"time_ns":5,"kind":"eclipse"}') is None
    line = '{"schema":1,"time_ns":5,"kind":"retrieved","iteration":3,"colour":"red"}'
    assert parse_line(line) == Entry(5, Retrieved(iteration=3))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[]", "JSON object"),
        ('{"schema":1,"kind":"failure"}', "time_ns"),
        ('{"schema":1,"time_ns":1.5,"kind":"failure"}', "time_ns"),
        ('{"schema":2,"time_ns":1,"kind":"failure"}', "schema 2"),
        ('{"time_ns":1,"kind":"failure"}', "schema None"),
        ('{"schema":1,"time_ns":1', "delimiter"),
        ('{"schema":1,"time_ns":1,"kind":"failure"}', "failure.failure: missing: expected a text"),
        (
            '{"schema":1,"time_ns":1,"kind":"retrieved","iteration":true}',
            "retrieved.iteration: expected a whole number, not True",
        ),
        (
            '{"schema":1,"time_ns":1,"kind":"detected","seen":["a",1]}',
            "detected.seen: expected a list of texts",
        ),
    ],
)
def test_what_is_no_event_is_refused(line: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_line(line)


def test_an_event_that_cannot_be_is_not_made() -> None:
    with pytest.raises(ValueError, match=r"warning\.message: expected a text, not 7"):
        Warned(generation=1, rank=0, message=7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected more than 0"):
        IterationEnded(generation=1, rank=0, iteration=1, seconds=0.0)
    ended = {"issued_ns": (1,), "waited_ns": (1,), "resumed_ns": (1,), "ended_ns": (1, 2)}
    with pytest.raises(ValueError, match=r"ended_ns: expected 1 numbers, as there are ops, not"):
        SpansProfiled(
            generation=1,
            rank=0,
            iteration=1,
            ops=("a",),
            op_bytes=(1,),
            before_update_ns=1,
            **ended,
        )
