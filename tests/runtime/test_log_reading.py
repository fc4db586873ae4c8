"""Logs of several agents are read together and followed, whatever becomes of an agent or a file."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from castor_records.account import Account
from castor_records.events.event import Entry
from castor_records.events.storing import ClockMeasured, RootElected
from castor_runtime.launcher.accounts import AT_ONCE, Accounts
from castor_runtime.launcher.log_following import EventStream
from castor_runtime.launcher.log_reading import FolderReader, JobLogs, Line
from castor_runtime.transport import Listing, PeerUnreachableError


def is_log(name: str) -> bool:
    return name.endswith(".log")


@pytest.mark.parametrize(
    ("text", "tail", "shown"),
    [
        ("one\ntwo\nthree\n", None, ["one", "two", "three"]),
        ("one\ntwo\nthree\n", 2, ["two", "three"]),
        ("one\ntwo\nthree\n", 9, ["one", "two", "three"]),
        ("one\ntwo\nthree\n", 0, []),
        ("one\ntwo\nhalf", 1, ["two"]),
        ("", 5, []),
        (" 1%\r 50%\r100%\r\n", 5, ["100%"]),
        ("x" * 200_000 + "\nlast\n", 1, ["last"]),
        ("long\n" + "x" * 200_000 + "\nlast\n", 2, ["x" * 200_000, "last"]),
    ],
)
def test_the_last_lines_of_a_log(
    tmp_path: Path, text: str, tail: int | None, shown: list[str]
) -> None:
    (tmp_path / "agent.log").write_text(text)
    with JobLogs(is_log, tail) as logs:
        logs.meet("a", FolderReader(tmp_path))
        assert [line.text for line in logs.read({"a"})] == shown


def test_what_is_added_is_read_once_and_in_whole_lines(tmp_path: Path) -> None:
    log = tmp_path / "rank-0.log"
    log.write_bytes(b"old\nthis is ha")
    with JobLogs(is_log, 0) as logs:
        logs.meet("a", FolderReader(tmp_path))
        assert logs.read({"a"}) == []
        with log.open("ab") as file:
            file.write(b"lf a line\nand \xff\n")
        assert [line.text for line in logs.read({"a"})] == ["this is half a line", "and \ufffd"]
        assert logs.read({"a"}) == []
        # A log that comes later is read from its start, as is one that logrotate has begun anew.
        (tmp_path / "rank-1.log").write_text("new\n")
        log.write_text("anew\n")
        assert logs.read({"a"}) == [Line("a", "rank-0.log", "anew"), Line("a", "rank-1.log", "new")]
        log.unlink()
        assert logs.read({"a"}) == []


class Away:
    """An agent that cannot be reached."""

    def listing(self) -> Listing:
        raise PeerUnreachableError("10.0.0.7:1: no answer")

    def read(self, name: str, offset: int) -> tuple[int, bytes]:
        raise PeerUnreachableError(f"{name}, {offset}")

    def close(self) -> None:
        pass


def test_an_agent_that_is_away_is_named_and_goes_on_where_it_was(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "agent.log").write_text("1\n")
    both = {"a", "b"}
    with JobLogs(is_log) as logs:
        for name in "ab":
            logs.meet(name, FolderReader(tmp_path / name))
        assert [(line.agent, line.text) for line in logs.read(both)] == [("a", "1"), ("b", "1")]
        logs.meet("a", Away())
        for name in "ab":
            with (tmp_path / name / "agent.log").open("a") as file:
                file.write("2\n")
        assert [(line.agent, line.text) for line in logs.read(both)] == [("b", "2")]
        assert logs.unreached == {"a": "10.0.0.7:1: no answer"}
        logs.meet("a", FolderReader(tmp_path / "a"))
        assert [(line.agent, line.text) for line in logs.read(both)] == [("a", "2")]
        assert logs.unreached == {}
        logs.part("b")
        assert logs.read({"a"}) == []


def test_agents_are_asked_beside_each_other(tmp_path: Path) -> None:
    all_asked = threading.Barrier(AT_ONCE)

    class Slow(FolderReader):
        def listing(self) -> Listing:
            all_asked.wait(60)
            return super().listing()

    with JobLogs(is_log) as logs:
        names = {str(number) for number in range(2 * AT_ONCE)}
        for name in names:
            logs.meet(name, Slow(tmp_path))
        logs.read(names)
        assert logs.unreached == {}


def entry(at_s: float, term: int) -> Entry[RootElected]:
    return Entry(round(at_s * 1e9), RootElected(agent="x", term=term))


def test_events_that_are_followed_are_told_once_and_by_one_clock() -> None:
    """What an account tells and a log, too, comes once; later lines are corrected as well."""
    measured = ClockMeasured(agent="b", reference="a", offset_ns=-5 * 10**9, uncertainty_ns=10**6)
    account = Account(agent="b", run="r", entries=(entry(6, 1), Entry(6 * 10**9, measured)))
    stream = EventStream()
    past = stream.past(Accounts(by_agent={"b": account}))
    assert [one.entry.time_ns for one in past] == [10**9, 10**9]
    lines = [
        Line("b", "events.jsonl", entry(6, 1).to_line()),
        Line("b", "events.jsonl", entry(8, 3).to_line()),
        Line("a", "events.jsonl", entry(2, 2).to_line()),
        Line("a", "events.jsonl", '{"schema":1,"time'),
        Line("a", "events.jsonl", ""),
    ]
    new = stream.new(lines)
    told = [(one.agent, one.entry.time_ns // 10**9) for one in new]
    assert told == [("a", 2), ("b", 3)]
    assert new[1].to_json()["clock"]["offset_s"] == -5.0
    assert new[1].to_json()["by"] == "b"
