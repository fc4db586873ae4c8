"""An agent's own key: one life holds it at a time; in the end its newest report stands there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.own_report import NameClaim, OwnReport, ReportWrite, Sign, Verdict

ME = "node-0"
LEASE = 7


def told(life: str, generation: int) -> AgentReport:
    return AgentReport(ME, life, False, "h:1", generation)


class Key:
    """The key in a store: what stands there, at which revision, and the changes so far."""

    def __init__(self) -> None:
        self.report: AgentReport | None = None
        self.revision = 1
        self.modified = 0
        self.lease = 0
        self.changes: list[tuple[AgentReport | None, int]] = []

    def write(self, write: ReportWrite, lease: int) -> int | None:
        """Carry it out if its compare holds; return the revision."""
        if write.after != self.modified:
            return None
        self.revision += 1
        self.report, self.modified, self.lease = write.report, self.revision, lease
        self.changes.append((write.report, self.revision))
        return self.revision

    def expire(self) -> None:
        if self.report is not None:
            self.revision += 1
            self.report, self.modified = None, 0
            self.changes.append((None, self.revision))


class Writer:
    """A driver of `OwnReport` whose writes may be late, and whose answers may be lost."""

    def __init__(self, key: Key, life: str, lease: int) -> None:
        self.key, self.life, self.lease = key, life, lease
        self.own = OwnReport()
        self.late: list[ReportWrite] = []
        self.writes = 0
        self._shown = 0

    def say(self, generation: int) -> None:
        self.own.desired = told(self.life, generation)

    def write(self, fate: str = "done") -> None:
        """Write what is wanted, if anything is; read again where the store refuses it."""
        write = self.own.wanted(self.lease)
        if write is None:
            return
        self.writes += 1
        if fate == "late":
            self.late.append(write)
        elif fate != "lost":
            revision = self.key.write(write, self.lease)
            if fate == "unanswered":
                return
            if revision is None:
                self.read()
            else:
                self.own.written(self.lease, write, revision)

    def arrive(self) -> None:
        if self.late:
            self.key.write(self.late.pop(0), self.lease)

    def show(self) -> None:
        for report, revision in self.key.changes[self._shown :]:
            self.own.known(report, revision)
        self._shown = len(self.key.changes)

    def read(self) -> None:
        there = self.key.report
        self.own.known(there, self.key.revision if there is None else self.key.modified)


moves = st.one_of(
    st.tuples(st.just("say"), st.integers(1, 4)),
    st.tuples(st.sampled_from(["done", "lost", "late", "unanswered"]), st.none()),
    st.tuples(st.sampled_from(["arrive", "show", "read", "expire"]), st.none()),
)


@given(st.lists(moves, max_size=24))
def test_the_newest_report_stands_in_the_end_and_is_then_left_alone(play) -> None:
    key = Key()
    writer = Writer(key, "i1", LEASE)
    for move, detail in play:
        if move == "say":
            writer.say(int(detail))
        elif move in ("arrive", "show", "read"):
            getattr(writer, move)()
        elif move == "expire":
            key.expire()
        else:
            writer.write(move)
    writer.read()
    for _ in range(3):
        writer.write()
    while writer.late:
        writer.arrive()  # what came late is refused
    writer.show()
    assert key.report == writer.own.desired
    assert writer.own.wanted(LEASE) is None
    assert writer.own.desired is None or key.lease == LEASE


@given(st.lists(st.tuples(st.integers(1, 4), st.booleans()), max_size=20))
def test_while_nothing_is_late_no_report_is_written_twice(said) -> None:
    """Own reports that a watch shows after the next one was wanted are no reason to write."""
    writer, changes = Writer(Key(), "i1", LEASE), 0
    for generation, watched in said:
        changes += writer.own.desired != told("i1", generation)
        writer.say(generation)
        if watched:
            writer.show()
        writer.write()
    assert writer.writes == changes


lives = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.sampled_from(["say", "done", "lost", "late", "unanswered", "arrive", "show", "read"]),
    ),
    max_size=40,
)


@given(lives)
def test_of_two_lives_of_one_name_neither_writes_over_the_other(play) -> None:
    key = Key()
    writers = [Writer(key, "i1", 7), Writer(key, "i2", 8)]
    generation = 0
    for index, move in play:
        writer, before = writers[index], key.report
        if move == "say":
            generation += 1
            writer.say(generation)
        elif move in ("arrive", "show", "read"):
            getattr(writer, move)()
        else:
            writer.write(move)
        if before is not None:
            assert key.report is not None
            assert key.report.incarnation == before.incarnation
    for writer in writers:
        writer.say(99)
        writer.read()
        writer.write()
    assert key.report is not None
    winner, other = sorted(writers, key=lambda w: w.life != key.report.incarnation)
    winner.read()
    other.read()
    assert winner.own.is_claimed
    assert winner.own.holder is None
    assert not other.own.is_claimed
    assert other.own.holder == key.report
    assert other.own.wanted(other.lease) is None


def test_a_buried_lifes_key_is_taken_over_in_one_change_and_what_it_sent_is_refused() -> None:
    key = Key()
    earlier, later = Writer(key, "i1", 7), Writer(key, "i2", 8)
    earlier.say(1)
    earlier.write()
    earlier.say(2)
    earlier.write("late")  # on its way when the process is killed
    later.say(0)
    later.read()
    assert later.own.wanted(8) is None
    later.own.bury("i1")
    later.write()
    assert (key.report, key.lease) == (told("i2", 0), 8)
    earlier.arrive()
    assert key.report == told("i2", 0)
    assert [report.incarnation if report else None for report, _ in key.changes] == ["i1", "i2"]


def test_a_life_whose_lease_has_ended_finds_that_its_name_is_anothers() -> None:
    key = Key()
    first, second = Writer(key, "i1", 7), Writer(key, "i2", 8)
    first.say(1)
    first.write()
    key.expire()
    second.say(0)
    second.write()
    first.say(2)
    first.write()
    assert first.own.holder == told("i2", 0)
    assert key.report == told("i2", 0)


def test_a_report_that_is_gone_unseen_is_written_again() -> None:
    """Written and answered, then gone with the lease before any watch showed it."""
    key = Key()
    writer = Writer(key, "i1", LEASE)
    writer.say(1)
    writer.write()
    key.expire()
    writer.own.known(None, key.revision)  # a read that does not show it
    writer.write()
    assert key.report == told("i1", 1)


def test_a_new_lease_has_the_report_written_again_and_no_lease_has_none() -> None:
    own = OwnReport()
    assert own.wanted(1) is None
    own.desired = told("i1", 1)
    assert own.wanted(None) is None
    own.written(1, ReportWrite(told("i1", 1), 0), 5)
    assert own.wanted(1) is None
    assert own.wanted(2) == ReportWrite(told("i1", 1), 5)


@pytest.mark.parametrize(
    ("sign", "verdict"), [(Sign.DEAD, Verdict.TAKE), (Sign.ALIVE, Verdict.REFUSE)]
)
def test_proof_decides_at_once(sign: Sign, verdict: Verdict) -> None:
    assert NameClaim(5.0).decide(told("i1", 1), sign, 0.0) is verdict


def test_without_proof_the_earlier_lifes_lease_has_to_end_and_who_renews_it_is_alive() -> None:
    claim = NameClaim(5.0)
    decided = [claim.decide(told("i1", 1), Sign.UNKNOWN, now_s) for now_s in (0.0, 6.0, 11.9, 12.0)]
    assert decided == [Verdict.WAIT, Verdict.WAIT, Verdict.WAIT, Verdict.REFUSE]
    # Another life has come meanwhile, or the store was away: the time begins anew.
    assert claim.decide(told("i2", 1), Sign.UNKNOWN, 12.0) is Verdict.WAIT
    assert claim.decide(told("i2", 1), Sign.UNKNOWN, 23.9) is Verdict.WAIT
    claim.outage()
    assert claim.decide(told("i2", 1), Sign.UNKNOWN, 30.0) is Verdict.WAIT


def test_a_backups_earlier_life_is_no_reason_to_give_the_name_up_at_once() -> None:
    own = OwnReport()
    own.desired = told("i2", 3)
    own.written(7, ReportWrite(told("i2", 3), 0), 50)
    assert not own.in_question
    own.restart()
    assert own.in_question
    own.known(told("i1", 1), 9)
    assert own.holder == told("i1", 1)
    assert own.wanted(8) is None, "its lease ends by itself, or it is alive"
    own.known(None, 20)
    assert own.wanted(8) == ReportWrite(told("i2", 3), 0)
    own.written(8, ReportWrite(told("i2", 3), 0), 21)
    assert not own.in_question
