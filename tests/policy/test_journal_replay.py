"""A journal is written line by line, read back exactly, and replayed until the machines part."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.effects import WritePlan
from castor_policy.agents.events import (
    PlanChanged,
    Progressed,
    ReportChanged,
    RootChanged,
    SessionOpened,
    SessionRenewed,
    StoreLost,
    Tick,
)
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.life import AgentLife
from castor_policy.agents.office import Office, Tenure
from castor_policy.agents.store_contact import StoreContact
from castor_policy.agents.worker import Worker
from castor_policy.journal.lines import ReportChanges, packed, unpacked
from castor_policy.journal.recorder import TICKS_KEPT, Recorder
from castor_policy.journal.replay import JournalError, Replayed, replay
from castor_policy.journal.values import encode
from castor_policy.membership import WatchLimits

SPEC = JobSpec(
    "job",
    2,
    1,
    "group",
    ((0, 1), (1, 0)),
    "train.py",
    arguments=("--token", "hush"),
    limits=WatchLimits(lease_s=4.0),
    credentials="secret:0123",
)


class Lines:
    """A sink in memory, in which so many lines find room."""

    def __init__(self, most: int = 10**9) -> None:
        self.lines: list[str] = []
        self.most = most
        self.put_away = 0

    @property
    def is_full(self) -> bool:
        return len(self.lines) >= self.most

    def append(self, line: str) -> None:
        self.lines.append(line)

    def begin_anew(self, line: str) -> None:
        self.put_away += 1
        self.lines = [line]


class Journaled:
    """A life with a journal, that is root whenever a test says so."""

    def __init__(self, sink: Lines, agent: str = "a") -> None:
        self.sink = sink
        self.recorder = Recorder(sink, lambda: 7)
        self.tenure = Tenure(None, None)
        worker = Worker(
            SPEC, agent, f"{agent}1", "host:1", False, 1.0, left={0: (3,)}, left_generation=2
        )
        self.life = AgentLife(worker, lambda: self.tenure, journal=self.recorder)

    def elect(self, now_s: float) -> None:
        told = [self.report("a"), self.report("b")]
        self.tenure = Tenure(None, Office(5, None, 0, told))
        self.life.decide(RootChanged("a"), now_s, now_s)

    def report(self, agent: str, **changes: Any) -> AgentReport:
        return AgentReport(agent, f"{agent}1", False, f"{agent}:1", proof="0123", **changes)

    def lines(self) -> list[str]:
        self.recorder.flush()
        return self.sink.lines


def a_short_life(sink: Lines) -> Journaled:
    made = Journaled(sink)
    life = made.life
    life.obey(SessionOpened(None, 1.0), 1.25)
    life.obey(Tick(), 1.5)
    made.elect(1.6)
    (write,) = life.decide(Tick(), 1.75, 8.75)
    assert isinstance(write, WritePlan)
    life.decide(Tick(), 1.8, 8.8)  # it waits for its write
    life.root_write_ended(write, life.root, False)
    (write,) = life.decide(ReportChanged("b", made.report("b", iteration=1)), 2.0, 9.0)
    assert isinstance(write, WritePlan)
    for event in (PlanChanged(write.plan, 9), Progressed(1, 1), StoreLost(), Tick()):
        life.obey(event, 2.25)
        life.decide(event, 2.25, 9.25)
    return made


def only(lines: list[str]) -> Replayed:
    (told,) = replay(lines)
    return told


def test_a_life_is_the_same_to_the_end() -> None:
    made = a_short_life(Lines())
    lines = made.lines()
    told = only(lines)
    assert told.parting is None
    assert told.last_line == len(lines)
    assert (told.terms, told.generations, told.header.left) == ([5], [1], {0: (3,)})
    assert (told.events["worker"], told.ticks["worker"]) == (4, 2)
    assert (told.events["root"], told.ticks["root"]) == (3, 3)
    assert encode(told.life.worker) == encode(made.life.worker)
    assert encode(told.life.root) == encode(made.life.root)


def test_no_secret_stands_in_it() -> None:
    text = "\n".join(a_short_life(Lines()).lines())
    for secret in ("hush", "0123", "secret:"):
        assert secret not in text


def test_a_line_says_what_came_in_and_what_was_done() -> None:
    lines = [json.loads(line) for line in a_short_life(Lines()).lines()]
    header, opened, ticks, elected = lines[:4]
    assert (header["journal"], header["agent"], header["left"]) == (1, "a", {"0": [3]})
    assert opened["event"]["@"] == "events.SessionOpened"
    assert [one["@"] for one in opened["effects"]] == ["effects.Report"]
    assert elected["tenure"]["office"]["term"] == 5 if "tenure" in elected else ticks["tenure"]
    assert {"by": "root", "write_failed": True} in lines


def test_a_report_is_written_once_and_then_what_changes_in_it() -> None:
    made = Journaled(Lines())
    made.elect(1.0)
    for iteration in (1, 2):
        told = ReportChanged("b", made.report("b", iteration=iteration))
        made.life.decide(told, 1.0 + iteration, 0.0)
    *_, last = made.lines()
    report = json.loads(last)["event"]["report"]
    assert report == {"@": "changes", "agent": "b", "iteration": 2}


def test_quiet_ticks_are_kept_back_but_not_for_ever() -> None:
    made = Journaled(Lines())
    for number in range(TICKS_KEPT + 1):
        made.life.obey(Tick(), 2.0 + 0.25 * number)
    assert len(made.sink.lines) == 2
    assert len(made.lines()) == 3
    assert only(made.lines()).ticks["worker"] == TICKS_KEPT + 1


def test_nothing_is_written_before_something_is_taken_in() -> None:
    made = Journaled(Lines())
    made.life.decide(Tick(), 1.0, 1.0)  # it is not root
    assert made.lines() == []


def test_a_full_sink_goes_on_with_the_machines_states() -> None:
    sink = Lines(most=4)
    made = a_short_life(sink)
    assert sink.put_away
    told = only(made.lines())
    assert told.header.worker is not None
    assert told.parting is None
    assert encode(told.life.worker) == encode(made.life.worker)
    assert encode(told.life.root) == encode(made.life.root)


def test_a_changed_machine_parts_at_the_line_where_it_does_something_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = a_short_life(Lines()).lines()
    monkeypatch.setattr(StoreContact, "lost", lambda _: [])
    parting = only(lines).parting
    assert parting is not None
    (line,) = [n for n, text in enumerate(lines, 1) if '"events.StoreLost"' in text]
    assert (parting.line, parting.by, parting.now) == (line, "worker", [])
    assert [one["event"]["@"] for one in parting.then] == ["storing.StoreLost"]
    assert parting.event == {"@": "events.StoreLost"}


def test_an_error_of_a_machine_is_in_its_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    made = Journaled(Lines())
    with monkeypatch.context() as patched:
        patched.setattr(StoreContact, "renewed", broken)
        with pytest.raises(RuntimeError, match="a bug"):
            made.life.obey(SessionRenewed(1.0), 1.5)
        lines = made.lines()
        assert json.loads(lines[-1])["raised"] == "RuntimeError: a bug"
        assert only(lines).parting is None
    parting = only(lines).parting
    assert parting is not None
    assert (parting.line, parting.then, parting.now) == (2, ["RuntimeError: a bug"], [])


def test_lives_follow_each_other_and_a_torn_last_line_is_only_said() -> None:
    lines = a_short_life(Lines()).lines()
    told = list(replay([*lines[:-1], lines[-1][:20], *lines, "", lines[-1][:9]]))
    assert [one.parting for one in told] == [None, None]
    assert [one.is_torn for one in told] == [True, True]
    assert [one.first_line for one in told] == [1, len(lines) + 1]


def test_it_stops_where_it_is_told_to() -> None:
    lines = a_short_life(Lines()).lines()
    (told,) = replay(lines, until=3)
    assert told.last_line == 3


@pytest.mark.parametrize(
    ("number", "text", "words"),
    [
        (1, '{"by":"worker","ticks":[1]}', "a journal begins with a line that has"),
        (1, '{"journal":2}', "journal: schema 2; this version of Castor reads 1"),
        (1, '{"journal":1,"left":{}}', "castor: missing"),
        (1, '{"journal":1,"left":{"x":[1]}}', "left: .* gives no iterations"),
        (2, "[]", "expected a JSON object"),
        (2, '{"by":"nobody"}', "by: expected 'worker' or 'root', not 'nobody'"),
        (2, '{"by":"worker","now_s":1.0}', "event: missing"),
        (2, '{"by":"worker","event":{"@":"events.Tick"},"now_s":"1"}', "now_s: cannot be '1'"),
        (2, '{"by":"worker","ticks":[]}', "no times of ticks"),
        (2, '{"by":"root","ticks":[1],"at_s":[1,2]}', "at_s: no times of ticks"),
        (
            2,
            '{"by":"worker","now_s":1,"event":{"@":"changes","agent":"z"},"effects":[]}',
            "changes of a report of 'z', of which none came before",
        ),
        (2, '{"by":"worker","now_s":1,"event":{"@":"events.No"},"effects":[]}', "'events.No' is"),
        (2, '{"by":"wor', "is damaged: no JSON"),
    ],
)
def test_a_line_that_is_none_is_refused_with_its_number(number: int, text: str, words: str) -> None:
    lines = a_short_life(Lines()).lines()
    with pytest.raises(JournalError, match=words) as caught:
        list(replay([*lines[: number - 1], text, *lines[number:]]))
    assert caught.value.line == number


@given(st.lists(st.integers(0, 10**12).map(lambda us: us / 1e6), min_size=1, max_size=20))
def test_times_in_whole_microseconds_are_gaps_and_exact(times_s: list[float]) -> None:
    tree = packed(times_s)
    assert all(isinstance(one, int) for one in tree)
    assert list(unpacked(json.loads(json.dumps(tree)))) == times_s


@given(st.lists(st.floats(0, 1e9) | st.none(), min_size=1, max_size=20))
def test_all_other_times_are_exact_too(times_s: list[float | None]) -> None:
    tree = json.loads(json.dumps(packed(times_s)))
    assert list(unpacked(tree, len(times_s))) == times_s


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.booleans()), max_size=20))
def test_changes_of_reports_give_the_reports(told: list[tuple[str, int, bool]]) -> None:
    written, read = ReportChanges(), ReportChanges()
    for agent, iteration, redundant in told:
        tree = encode(AgentReport(agent, "1", False, "", iteration=iteration, redundant=redundant))
        short = json.loads(json.dumps(written.compact("root", {"reports": [tree, tree]})))
        assert read.expand("root", short) == {"reports": [tree, tree]}
