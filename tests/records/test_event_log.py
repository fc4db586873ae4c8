"""The log of a run that has ended: a line or a figure that is none is named, never skipped."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from castor_configs.errors import InputError
from castor_records.event_log import events_of_run
from castor_records.events.event import Entry, Event
from castor_records.events.training import COLLECTIVE_COLUMNS
from castor_records.run_files import RunFiles

WHOLE = '{"schema":1,"time_ns":5,"kind":"run_started","ranks":2}\n'


OF_A_RANK = {"generation": 1, "rank": 0, "iteration": 1}


def line(kind: str, **fields: Any) -> str:
    return json.dumps({"schema": 1, "time_ns": 7, "kind": kind, **OF_A_RANK, **fields}) + "\n"


def profiled(**fields: Any) -> str:
    columns = {name: [1] for name in COLLECTIVE_COLUMNS}
    whole = {"ops": ["all_reduce"], **columns, "before_update_ns": 5}
    return line("spans_profiled", **whole | fields)


def read(tmp_path: Path, text: str | bytes) -> list[Entry[Event]]:
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "events.jsonl").write_bytes(data)
    return events_of_run(RunFiles(tmp_path))


def test_events_come_in_order_of_time(tmp_path: Path) -> None:
    later = line("iteration_ended", seconds=0.5, loss=None)
    unknown = '{"schema":1,"time_ns":1,"kind":"of_a_later_version"}\n'
    found = read(tmp_path, later + unknown + WHOLE)
    assert [entry.event.kind for entry in found] == ["run_started", "iteration_ended"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (WHOLE + '{"schema":1,"time_ns":7,"ki', "events.jsonl:2: is damaged"),
        (WHOLE + "@@@\n" + WHOLE, "events.jsonl:2: is damaged"),
        (WHOLE + "[1]\n", "events.jsonl:2: .*expected a JSON object"),
        (b"\xff\xfe\n", "events.jsonl:1: is damaged"),
        ("", "events.jsonl: is damaged: it holds no event"),
        (line("iteration_ended", seconds=float("nan")), "iteration_ended.seconds: .*nan"),
        (line("iteration_ended", seconds=-1.0), "seconds: expected a number of 0 or more"),
        (line("iteration_ended", seconds=0.0), "seconds: expected more than 0"),
        (line("iteration_ended", seconds="1"), "seconds: .*'1'"),
        (line("iteration_ended", rank=None), "rank: expected a whole number, not None"),
        ('{"schema":1,"time_ns":7,"kind":"busy"}\n', "busy.generation: missing"),
        (line("iteration_ended", rank="a"), "rank: expected a whole number, not 'a'"),
        (line("checkpoint_completed", network_s=float("inf")), "network_s: .*inf"),
        (line("scheduled", chunk_bytes=["x"]), "chunk_bytes: expected a list"),
        (line("link_measured", sizes_bytes="x"), "sizes_bytes: expected a list"),
        (profiled(deviation=float("nan")), "deviation: .*nan"),
        (profiled(issued_ns=["a"]), "issued_ns: expected a list"),
        (
            profiled(op_bytes=[1, 2]),
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
        events_of_run(RunFiles(tmp_path))
