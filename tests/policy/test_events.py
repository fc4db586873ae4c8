"""The event log: what is written is read back the same, and foreign lines are told apart."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor_policy.events import SCHEMA, Event, EventKind, parse_line

values = st.one_of(
    st.text(),
    st.integers(),
    st.floats(allow_nan=False),
    st.booleans(),
    st.none(),
    st.lists(st.integers(), max_size=4),
)
names = st.text(min_size=1).filter(lambda name: name not in {"schema", "time_ns", "kind"})
events = st.builds(
    Event,
    st.integers(0, 2**63 - 1),
    st.sampled_from(list(EventKind)),
    st.dictionaries(names, values, max_size=5),
)


@given(events)
def test_a_line_is_read_back_as_the_event_that_was_written(event: Event) -> None:
    line = event.to_line()
    assert "\n" not in line
    assert "\r" not in line
    assert parse_line(line) == event


@given(events)
def test_a_line_is_json_with_schema_time_and_kind_first(event: Event) -> None:
    record = json.loads(event.to_line())
    assert list(record)[:3] == ["schema", "time_ns", "kind"]
    assert record["schema"] == SCHEMA


def test_an_unknown_kind_is_skipped() -> None:
    assert parse_line('{"schema":1,"time_ns":5,"kind":"eclipse"}') is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[]", "JSON object"),
        ('{"schema":1,"kind":"failure"}', "time_ns"),
        ('{"schema":1,"time_ns":1.5,"kind":"failure"}', "time_ns"),
        ('{"schema":2,"time_ns":1,"kind":"failure"}', "schema 2"),
        ('{"time_ns":1,"kind":"failure"}', "schema None"),
        ('{"schema":1,"time_ns":1', "delimiter"),
    ],
)
def test_what_is_no_event_is_refused(line: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_line(line)
