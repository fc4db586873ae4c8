"""The log of a run that has ended: a line or a figure that is none is named, never skipped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from castor_analysis.run_log import events_of_run
from castor_configs.errors import InputError
from castor_policy.events import Event, EventKind, Value
from castor_runtime.launcher.run_folder import RunFolder

WHOLE = '{"schema":1,"time_ns":5,"kind":"run_started","ranks":2}\n'


def line(kind: EventKind, **fields: Value) -> str:
    return Event(7, kind, fields).to_line() + "\n"


def read(tmp_path: Path, text: str | bytes) -> list[Event]:
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "events.jsonl").write_bytes(data)
    return events_of_run(RunFolder(tmp_path))


def test_events_come_in_order_of_time(tmp_path: Path) -> None:
    later = line(EventKind.ITERATION_ENDED, rank=0, iteration=1, seconds=0.5, loss=None)
    unknown = '{"schema":1,"time_ns":1,"kind":"of_a_later_version"}\n'
    found = read(tmp_path, later + unknown + WHOLE)
    assert [event.kind for event in found] == [EventKind.RUN_STARTED, EventKind.ITERATION_ENDED]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (WHOLE + '{"schema":1,"time_ns":7,"ki', "events.jsonl:2: is damaged"),
        (WHOLE + "@@@\n" + WHOLE, "events.jsonl:2: is damaged"),
        (WHOLE + "[1]\n", "events.jsonl:2: .*expected a JSON object"),
        (b"\xff\xfe\n", "events.jsonl:1: is damaged"),
        ("", "events.jsonl: is damaged: it holds no event"),
        (line(EventKind.ITERATION_ENDED, seconds=float("nan")), "iteration_ended.seconds: .*nan"),
        (line(EventKind.ITERATION_ENDED, seconds=-1.0), "seconds: expected a number of 0 or more"),
        (line(EventKind.ITERATION_ENDED, seconds=0.0), "seconds: expected more than 0"),
        (line(EventKind.ITERATION_ENDED, seconds="1"), "seconds: .*'1'"),
        (line(EventKind.ITERATION_ENDED, rank="a"), "rank: expected a whole number, not 'a'"),
        (line(EventKind.CHECKPOINT_COMPLETED, network_s=float("inf")), "network_s: .*inf"),
        (line(EventKind.SCHEDULED, chunk_bytes=["x"]), "chunk_bytes: expected a list"),
        (line(EventKind.LINK_MEASURED, sizes_bytes="x"), "sizes_bytes: expected a list"),
        (line(EventKind.SPANS_PROFILED, deviation=float("nan")), "deviation: .*nan"),
        (line(EventKind.SPANS_PROFILED, issued_ns=["a"]), "issued_ns: expected a list"),
        (
            line(EventKind.SPANS_PROFILED, ops=["all_reduce"], op_bytes=[1, 2]),
            "op_bytes: expected 1 numbers, as there are ops, not 2",
        ),
    ],
)
def test_damage_is_named(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(InputError) as raised:
        read(tmp_path, text)
    assert re.search(said, str(raised.value))


def test_a_run_without_a_log_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no events\.jsonl"):
        events_of_run(RunFolder(tmp_path))
