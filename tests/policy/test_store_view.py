"""What an agent makes of its store: against a store's whole history, brought in any order."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor_policy.agents import store_writes
from castor_policy.agents.admission import refused_prefix
from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.effects import AskPersist, RequestMachine, Resign, WritePlan
from castor_policy.agents.events import (
    PersistChanged,
    PlanChanged,
    PlanLost,
    ReportChanged,
    RootChanged,
    StoreTrouble,
)
from castor_policy.agents.job_change import JobChange, meaning
from castor_policy.agents.office import Tenure
from castor_policy.agents.own_report import ReportWrite
from castor_policy.agents.plan import Plan
from castor_policy.agents.store_keys import (
    agents_prefix,
    layout_prefix,
    persist_key,
    plan_key,
    requests_prefix,
    root_key,
    spec_key,
)
from castor_policy.agents.store_view import StoreView
from castor_policy.store import Compare, Delete, Keys, KeyValue, Put, StoreEvent, Txn

JOB, ME = "j", "node-0"
OWN_KEY = agents_prefix(JOB) + ME


def told(agent: str, generation: int) -> AgentReport:
    return AgentReport(agent, "i1", False, "h:1", generation)


def plan(generation: int) -> Plan:
    return Plan(generation, 1, "gather", (ME, "node-1"), ("i1", "i1"))


VALUES = {
    plan_key(JOB): lambda n: plan(n).to_json(),
    root_key(JOB): lambda n: f"node-{n % 2}",
    persist_key(JOB): str,
    OWN_KEY: lambda n: told(ME, n).to_json(),
    agents_prefix(JOB) + "node-1": lambda n: told("node-1", n).to_json(),
    layout_prefix(JOB) + "0": lambda n: f"layout {n}",
    requests_prefix(JOB) + "1-0": str,
}
KEYS = tuple(VALUES)


class History:
    """A store's keys and changes, revision by revision."""

    def __init__(self, steps: list[tuple[str, int | None]]) -> None:
        self.events: list[StoreEvent] = []
        self.snapshots: list[dict[str, KeyValue]] = [{}, {}]  # an empty store is at revision 1
        for key, number in steps:
            self.apply(key, None if number is None else VALUES[key](number))

    @property
    def revision(self) -> int:
        return len(self.snapshots) - 1

    def apply(self, key: str, value: str | None) -> int:
        now = dict(self.snapshots[-1])
        if value is None and key not in now:
            return self.revision
        revision = self.revision + 1
        if value is None:
            del now[key]
            self.events.append(StoreEvent(key, None, 0, revision))
        else:
            born = now[key].create_revision if key in now else revision
            now[key] = KeyValue(key, value, born, revision, 7)
            self.events.append(StoreEvent(key, value, born, revision))
        self.snapshots.append(now)
        return revision

    def read(self, revision: int) -> tuple[list[KeyValue], int]:
        return [found for _, found in sorted(self.snapshots[revision].items())], revision

    def after(self, revision: int) -> list[StoreEvent]:
        return [event for event in self.events if event.mod_revision > revision]


steps = st.lists(
    st.tuples(st.sampled_from(KEYS), st.one_of(st.none(), st.integers(1, 4))), max_size=24
)


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[History, list[int | StoreEvent]]:
    """A history, and how it comes: a watch from a read on, among other reads, early and late."""
    history = History(draw(steps))
    begin = draw(st.integers(1, history.revision))
    coming: list[int | StoreEvent] = [*history.after(begin)]
    for revision in draw(st.lists(st.integers(1, history.revision), max_size=5)):
        coming.insert(draw(st.integers(0, len(coming))), revision)
    # The watch's own read comes before what it shows; another may have come before it.
    before = [] if draw(st.booleans()) else [draw(st.integers(1, history.revision))]
    return history, [*before, begin, *coming]


def deliver(history: History, coming: list[int | StoreEvent]) -> tuple[StoreView, list[JobChange]]:
    view, changes = StoreView(JOB, ME), []
    for item in coming:
        if isinstance(item, int):
            changes += view.read(*history.read(item), since=0)
        else:
            changes += view.change(item)
    assert view.epoch == 0, "a store that is what it was has lost nothing"
    return view, changes


@given(deliveries())
def test_however_the_changes_come_the_end_is_the_stores(case) -> None:
    history, coming = case
    view, _ = deliver(history, coming)
    last = history.snapshots[-1]
    found = last.get(plan_key(JOB))
    known, revision = view.plan()
    assert (known and known.to_json(), revision) == (
        (None, 0) if found is None else (found.value, found.mod_revision)
    )
    root, there = view.root(), last.get(root_key(JOB))
    assert (root is None) == (there is None)
    if root is not None and there is not None:
        assert (root.value, root.create_revision) == (there.value, there.create_revision)
    agents = sorted(key for key in last if key.startswith(agents_prefix(JOB)))
    assert [report.to_json() for report in view.reports()] == [last[key].value for key in agents]
    layout = last.get(layout_prefix(JOB) + "0")
    assert view.layouts() == ({} if layout is None else {"0": layout.value})


@given(deliveries())
def test_who_is_only_told_knows_as_much(case) -> None:
    history, coming = case
    view, changes = deliver(history, coming)
    roots = [change.agent for change in changes if isinstance(change, RootChanged)]
    root = view.root()
    assert roots
    assert roots[-1] == ("" if root is None else root.value)
    plans = [change for change in changes if isinstance(change, PlanChanged)]
    if view.plan()[0] is not None:
        assert (plans[-1].plan, plans[-1].revision) == view.plan()
    assert all(a.revision < b.revision for a, b in itertools.pairwise(plans))
    reports: dict[str, AgentReport] = {}
    for change in changes:
        if isinstance(change, ReportChanged) and change.report is None:
            reports.pop(change.agent, None)
        elif isinstance(change, ReportChanged):
            reports[change.agent] = change.report
    assert [reports[name] for name in sorted(reports)] == view.reports()
    persists = [change.iteration for change in changes if isinstance(change, PersistChanged)]
    there = history.snapshots[-1].get(persist_key(JOB))
    assert there is None or persists[-1] == int(there.value)


@given(deliveries())
def test_nothing_is_told_twice(case) -> None:
    history, coming = case
    view, _ = deliver(history, coming)
    again = [change for event in history.events for change in view.change(event)]
    for revision in range(1, history.revision + 1):
        again += view.read(*history.read(revision), since=0)
    assert again == []


@given(deliveries())
def test_a_root_is_ours_if_this_life_has_made_it(case) -> None:
    history, coming = case
    view, _ = deliver(history, coming)
    born = next(item for item in coming if isinstance(item, int))
    root = history.snapshots[-1].get(root_key(JOB))
    ours = root is not None and root.value == ME and root.create_revision > born
    assert view.term() == (root.create_revision if ours and root is not None else None)
    if root is not None:
        assert view.is_ours(root) == ours


def test_an_earlier_lifes_root_is_not_ours_though_it_bears_our_name() -> None:
    view = StoreView(JOB, ME)
    view.read([KeyValue(root_key(JOB), ME, 5, 5, 1)], 5)
    assert view.term() is None
    view.change(StoreEvent(root_key(JOB), None, 0, 6))
    view.change(StoreEvent(root_key(JOB), ME, 7, 7))
    assert view.term() == 7


def test_before_the_first_read_no_root_is_ours() -> None:
    assert not StoreView(JOB, ME).is_ours(KeyValue(root_key(JOB), ME, 3, 3, None))


def test_the_first_read_tells_that_there_is_no_root_and_no_later_one_does() -> None:
    view = StoreView(JOB, ME)
    assert view.read([], 5) == [RootChanged("")]
    assert view.read([], 9) == []
    there = StoreView(JOB, ME)
    assert there.read([KeyValue(root_key(JOB), "node-1", 3, 3, 1)], 5) == [RootChanged("node-1")]
    assert there.read([], 9) == [RootChanged("")]


def test_a_read_that_comes_after_a_later_one_raises_no_dead() -> None:
    """Its key was gone before the watch began: no watch would ever tell that it is."""
    history = History([(agents_prefix(JOB) + "node-1", 1), (agents_prefix(JOB) + "node-1", None)])
    view, changes = deliver(history, [3, 2])
    assert view.reports() == []
    assert changes == [RootChanged("")]


@pytest.mark.parametrize(
    "key", [agents_prefix(JOB), layout_prefix(JOB), spec_key(JOB), requests_prefix(JOB) + "1-0"]
)
def test_other_keys_mean_nothing_to_an_agent(key: str) -> None:
    assert meaning(JOB, StoreEvent(key, "{}", 3, 3)) is None
    view = StoreView(JOB, ME)
    assert view.read([KeyValue(key, "{}", 3, 3, None)], 3) == [RootChanged("")]
    assert (view.reports(), view.layouts(), view.plan()) == ([], {}, (None, 0))


GARBAGE = [
    '{"colour":2}',
    "no json",
    "[]",
    "null",
    "7",
    "[" * 100_000,
    '{"agent":"node-1"}',
    '{"agent":"node-1","incarnation":"i","standby":false,"address":"h:1","generation":"4",'
    '"holdings":{},"persistent":[]}',
    '{"agent":"node-1","incarnation":"i","standby":false,"address":"h:1","state":"asleep",'
    '"holdings":{},"persistent":[]}',
    '{"agent":"node-1","incarnation":"i","standby":false,"address":"h:1",'
    '"holdings":{"0":["x"]},"persistent":[]}',
]


@pytest.mark.parametrize("text", GARBAGE)
def test_a_report_of_no_meaning_is_set_aside_told_once_and_counts_as_none(text: str) -> None:
    view, key = StoreView(JOB, ME), agents_prefix(JOB) + "node-1"
    view.read([KeyValue(key, told("node-1", 2).to_json(), 3, 3, 7)], 3)
    trouble, gone = view.change(StoreEvent(key, text, 3, 4))
    assert isinstance(trouble, StoreTrouble)
    assert (trouble.about, "set aside" in trouble.reason) == (key, True)
    assert gone == ReportChanged("node-1", None)
    assert view.reports() == []
    assert view.read([KeyValue(key, text, 3, 4, 7)], 5) == []
    # Everything else goes on, and what can be read again is taken in.
    assert view.change(StoreEvent(persist_key(JOB), "7", 6, 6)) == [PersistChanged(7)]
    again = told("node-1", 3)
    assert view.change(StoreEvent(key, again.to_json(), 3, 7)) == [
        StoreTrouble(key, ""),
        ReportChanged("node-1", again),
    ]


@pytest.mark.parametrize("text", [*GARBAGE, plan(2).to_json().replace('"gather"', '"sleep"')])
def test_a_plan_of_no_meaning_is_set_aside_and_the_one_before_remembered(text: str) -> None:
    view = StoreView(JOB, ME)
    view.read([KeyValue(plan_key(JOB), plan(2).to_json(), 3, 3, None)], 3)
    trouble, lost = view.change(StoreEvent(plan_key(JOB), text, 3, 9))
    assert isinstance(trouble, StoreTrouble)
    assert lost == PlanLost(9)
    assert view.plan() == (None, 9), "what is written next must be written over this"
    assert view.known_plan() == plan(2)
    assert view.change(StoreEvent(plan_key(JOB), None, 0, 10))[-1] == PlanLost(0)
    assert (view.plan(), view.known_plan()) == ((None, 0), plan(2))


def test_an_own_report_that_somebody_spoils_is_written_again() -> None:
    view = StoreView(JOB, ME)
    view.own_report.desired = told(ME, 2)
    view.own_report.written(7, ReportWrite(told(ME, 2), 0), 5)
    assert view.own_report.wanted(7) is None
    view.change(StoreEvent(OWN_KEY, "no json", 5, 6))
    assert view.own_report.holder is None, "that is no other life"
    assert view.own_report.wanted(7) == ReportWrite(told(ME, 2), 6)
    view.own_report.written(7, ReportWrite(told(ME, 2), 6), 7)
    view.change(StoreEvent(OWN_KEY, None, 0, 8))
    assert view.own_report.wanted(7) == ReportWrite(told(ME, 2), 0)


def held(*names: str, generation: int = 3) -> list[KeyValue]:
    reports = [(agents_prefix(JOB) + name, told(name, generation).to_json()) for name in names]
    fixed = [
        (layout_prefix(JOB) + "0", "layout"),
        (plan_key(JOB), plan(generation).to_json()),
        (root_key(JOB), ME),
        (spec_key(JOB), "the spec"),
    ]
    return [KeyValue(key, value, 400, 400, 7) for key, value in [*reports, *fixed]]


def test_a_read_that_nothing_overtook_and_that_shows_less_is_of_another_store() -> None:
    """Case u1 of the trials: its agent stayed deaf."""
    view = StoreView(JOB, ME)
    view.read([KeyValue(root_key(JOB), "node-1", 7, 7, None)], 500)
    trouble, rootless = view.read([], 2)
    assert isinstance(trouble, StoreTrouble)
    assert (rootless, view.root()) == (RootChanged(""), None)


@pytest.mark.parametrize(("revision", "cluster"), [(2, 1), (2, 9), (499, 1), (500, 9), (900, 9)])
def test_a_store_that_lost_its_data_is_another_one(revision: int, cluster: int) -> None:
    view = StoreView(JOB, ME)
    view.read([], 399, cluster=1)
    view.read(held(ME, "node-1"), 400, cluster=1, since=399)
    view.change(StoreEvent(persist_key(JOB), "4", 500, 500))
    view.own_report.desired = told(ME, 3)
    view.own_report.written(7, ReportWrite(told(ME, 3), 400), 499)
    assert view.term() == 400
    seen = view.read([], revision, cluster=cluster, since=500)
    assert isinstance(seen[0], StoreTrouble)
    assert seen[0].about == "data"
    assert seen[1] == RootChanged(""), "before anything that a root could decide on"
    assert seen[2:] == [ReportChanged(ME, None), ReportChanged("node-1", None)]
    assert (view.epoch, view.revision, view.term()) == (1, revision, None)
    assert (view.plan(), view.known_plan()) == ((None, 0), plan(3))
    assert view.missing == {layout_prefix(JOB) + "0": "layout", spec_key(JOB): "the spec"}
    assert view.awaited == {ME: "i1", "node-1": "i1"}
    assert view.own_report.wanted(7) == ReportWrite(told(ME, 3), 0)
    # Its small revisions count, and a term of it may be the old one's number.
    new = told("node-1", 3)
    came = view.change(
        StoreEvent(agents_prefix(JOB) + "node-1", new.to_json(), revision + 1, revision + 1)
    )
    assert came == [ReportChanged("node-1", new)]
    assert view.awaited == {ME: "i1"}
    view.change(StoreEvent(root_key(JOB), ME, revision + 2, revision + 2))
    assert view.term() == revision + 2


def test_a_new_store_that_has_come_further_than_the_old_one_was_is_found_out() -> None:
    """An agent that was stopped for long sees no revision go back."""
    view = StoreView(JOB, ME)
    view.read([], 399)
    view.read(held(ME, "node-1"), 400, since=399)
    assert view.read(held(ME, "node-1"), 700, since=400) == [], "nothing has happened"
    assert view.epoch == 0
    came = KeyValue(agents_prefix(JOB) + "node-1", told("node-1", 3).to_json(), 12, 12, 7)
    seen = view.read([came], 900, since=700)
    assert isinstance(seen[0], StoreTrouble)
    assert "another one" in seen[0].reason
    assert view.epoch == 1
    assert view.revision == 900


def test_a_backups_root_and_older_plan_are_not_believed() -> None:
    view = StoreView(JOB, ME)
    view.read([], 399, cluster=1)
    view.read(held(ME, "node-1"), 500, cluster=1, since=399)
    view.read(held(ME, generation=1), 450, cluster=1, since=500)
    assert view.root() is not None
    assert view.term() is None, "its lease is to be given up for a fresh one"
    assert (view.plan()[0], view.known_plan()) == (plan(1), plan(3))
    assert view.missing == {}
    assert view.awaited == {"node-1": "i1"}


def test_a_read_that_was_overtaken_is_no_loss() -> None:
    view = StoreView(JOB, ME)
    view.read(held(ME), 500, cluster=1)
    assert view.read([], 300, cluster=1, since=200) == []
    assert view.epoch == 0


def test_who_knows_less_than_others_does_not_stand_as_root() -> None:
    view = StoreView(JOB, ME)
    view.read([], 1)
    assert view.may_campaign()
    other = agents_prefix(JOB) + "node-1"
    view.change(StoreEvent(other, told("node-1", 3).to_json(), 2, 2))
    assert not view.may_campaign()
    view.change(StoreEvent(plan_key(JOB), plan(3).to_json(), 3, 3))
    assert view.may_campaign()


def reading(history: History, keys: Keys, revision: int) -> list[KeyValue]:
    return [found for found in history.read(revision)[0] if keys.part_of(found.key) is not None]


@given(steps, st.data())
def test_a_new_root_misses_nothing_that_is_said_while_it_reads(before, data) -> None:
    """It watches little, is elected, reads all at some revision and watches all from there on."""
    others = agents_prefix(JOB) + "node-1"
    history = History(before)
    view, told_of = StoreView(JOB, ME), list[JobChange]()
    begin = data.draw(st.integers(1, history.revision))
    told_of += view.read(reading(history, view.agents_keys, begin), begin, view.agents_keys)
    told_of += view.begins_to_watch(view.agents_keys)
    history.apply(root_key(JOB), None)
    elected = history.apply(root_key(JOB), ME)
    read = elected
    for key, number in data.draw(steps):
        if key != root_key(JOB):
            now = history.apply(key, None if number is None else VALUES[key](number))
            read = now if data.draw(st.booleans()) else read
    # Each part of what is watched comes in its own order; how far each is, is anybody's guess.
    shown = [e for e in history.after(begin) if view.agents_keys.part_of(e.key) is not None]
    parts: dict[str | None, list[StoreEvent]] = {}
    for event in shown:
        parts.setdefault(view.agents_keys.part_of(event.key), []).append(event)
    while view.term() != elected:
        part = data.draw(st.sampled_from(sorted(filter(None, parts))))
        if parts[part]:
            told_of += view.change(parts[part].pop(0))
        else:
            del parts[part]
    assert view.term_in_office() is None
    assert not any(isinstance(c, ReportChanged) and c.agent != ME for c in told_of)
    keys, since = view.to_watch, view.revision
    if read >= since:
        seen = view.read(reading(history, keys, read), read, keys, since=0)
        seen += view.begins_to_watch(keys)
        assert seen[-1] == RootChanged(ME), "it takes office on all that it has read"
        for event in history.after(read):
            view.change(event)
        last = history.snapshots[-1]
        agents = sorted(key for key in last if key.startswith(agents_prefix(JOB)))
        assert [r.to_json() for r in view.reports()] == [last[key].value for key in agents]
        assert view.term_in_office() == elected
        # Root no more it follows nobody, and elected again it knows all anew.
        few = view.agents_keys
        view.begins_to_watch(few)
        assert [report.agent for report in view.reports()] in ([], [ME])
        told_again = view.read(*history.read(history.revision))
        assert any(isinstance(c, ReportChanged) for c in told_again) == (others in last)
    assert view.epoch == 0


def test_who_is_elected_and_hears_that_others_know_more_gives_the_office_up() -> None:
    view = StoreView(JOB, ME)
    few, everything = view.agents_keys, [KeyValue(root_key(JOB), ME, 7, 7, 1)]
    view.read([], 5, few)
    view.begins_to_watch(few)
    view.change(StoreEvent(root_key(JOB), ME, 7, 7))
    assert Tenure.seen_in(view) == Tenure(None, None), "it does not know enough to rule"
    other = KeyValue(agents_prefix(JOB) + "node-1", told("node-1", 3).to_json(), 6, 6, 2)
    view.read([other, *everything], 8, view.to_watch)
    view.begins_to_watch(view.to_watch)
    assert Tenure.seen_in(view) == Tenure(7, None)
    view.change(StoreEvent(root_key(JOB), None, 0, 9))
    view.begins_to_watch(few)
    assert not view.may_campaign(), "it remembers what it heard"
    view.heard_of_others([other])
    assert not view.may_campaign()
    view.heard_of_others([])
    assert view.may_campaign(), "nobody is left who knows more"


def test_a_report_that_is_not_believed_is_set_aside_and_not_listed() -> None:
    view = StoreView(JOB, ME, lambda report: report.proof == "right")
    key = agents_prefix(JOB) + "spare-0"
    wrong = told("spare-0", 0)
    (trouble,) = view.change(StoreEvent(key, wrong.to_json(), 3, 3))
    assert trouble == StoreTrouble(
        key, "set aside: agent spare-0 has not proven that it knows the job's secret"
    )
    assert view.reports() == []
    # Read again it is no other store's, and no news.
    assert view.read([KeyValue(key, wrong.to_json(), 3, 3, 7)], 3) == [RootChanged("")]
    right = replace(wrong, proof="right")
    assert view.change(StoreEvent(key, right.to_json(), 3, 4)) == [
        StoreTrouble(key, ""),
        ReportChanged("spare-0", right),
    ]
    assert ReportChanged("spare-0", None) in view.change(StoreEvent(key, wrong.to_json(), 3, 5))
    assert view.reports() == []


# ---- what is written -----------------------------------------------------------------------------


def test_a_roots_writes_are_fenced_by_its_term_and_a_plan_by_the_one_before() -> None:
    fence = Compare(root_key(JOB), create_revision=4)
    assert store_writes.root_write(JOB, ME, WritePlan(4, plan(2), 9)) == Txn(
        (fence, Compare(plan_key(JOB), mod_revision=9)), (Put(plan_key(JOB), plan(2).to_json()),)
    )
    assert store_writes.root_write(JOB, ME, AskPersist(4, 12)) == Txn(
        (fence,), (Put(persist_key(JOB), "12"),)
    )
    assert store_writes.root_write(JOB, ME, RequestMachine(4, "2-0")) == Txn(
        (fence,), (Put(requests_prefix(JOB) + "2-0", ME),)
    )
    assert store_writes.root_write(JOB, ME, Resign(4)) == Txn((fence,), (Delete(root_key(JOB)),))


def test_a_root_is_made_where_there_is_none_and_goes_with_its_lease() -> None:
    assert store_writes.campaign(JOB, ME, 7) == Txn(
        (Compare(root_key(JOB), create_revision=0),), (Put(root_key(JOB), ME, 7),)
    )
    assert store_writes.report(JOB, ReportWrite(told(ME, 1), 0), 7) == Txn(
        (Compare(OWN_KEY, mod_revision=0),),
        (Put(OWN_KEY, told(ME, 1).to_json(), 7), Delete(refused_prefix(JOB) + ME)),
    )
    assert store_writes.report(JOB, ReportWrite(told(ME, 1), 5), 7) == Txn(
        (Compare(OWN_KEY, mod_revision=5),), (Put(OWN_KEY, told(ME, 1).to_json(), 7),)
    )
