"""How much is done for a report: counted at two sizes, and never timed."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass

import pytest

from castor_policy.agents.effects import AskPersist, RootEffect
from castor_policy.agents.events import ReportChanged, RootEvent
from castor_policy.agents.root import Root
from castor_sim.explore import session
from castor_sim.explore.run import Search, run_seed
from castor_sim.explore.world import Shape, World

SMALL, LARGE = 8, 32


@dataclass(frozen=True, slots=True)
class Work:
    """What a run without faults took."""

    machines: int
    reports: int
    deliveries: int


def work(machines: int, monkeypatch: pytest.MonkeyPatch) -> Work:
    counts: Counter[str] = Counter()
    with monkeypatch.context() as patched:
        changed = session.Session._changed

        def counted(self: session.Session, events: list) -> None:
            counts["deliveries"] += sum("/agents/" in event.key for event in events)
            changed(self, events)

        patched.setattr(session.Session, "_changed", counted)
        world = World(Shape(machines, standby=0, iterations=4), 1, ())
        reported = world.monitor.reported

        def told(name: str, incarnation: str) -> None:
            counts["reports"] += 1
            reported(name, incarnation)

        patched.setattr(world.monitor, "reported", told)
        world.run()
    return Work(machines, counts["reports"], counts["deliveries"])


def test_a_report_is_told_to_its_writer_and_the_root_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for done in (work(SMALL, monkeypatch), work(LARGE, monkeypatch)):
        assert done.reports >= 5 * done.machines
        assert done.deliveries <= 2 * done.reports


@pytest.mark.parametrize("shape", [None, Shape(machines=6, standby=2)])
def test_what_the_root_did_not_look_at_would_have_changed_nothing(
    shape: Shape | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A root that looks at every report, at the time of the last look, decides nothing more."""
    handle, decide, seen = Root.handle, Root._decide, Counter[str]()
    looked_s: dict[int, float] = {}

    def decided(self: Root, now_s: float) -> list[RootEffect]:
        looked_s[id(self)] = now_s
        return decide(self, now_s)

    def handled(
        self: Root, event: RootEvent, now_s: float, at_s: float | None = None
    ) -> list[RootEffect]:
        before = looked_s.pop(id(self), now_s)
        effects = handle(self, event, now_s, at_s)
        looked = id(self) in looked_s
        looked_s.setdefault(id(self), before)
        seen["looked" if looked else "counted"] += 1
        if not looked and isinstance(event, ReportChanged):
            eager = copy.copy(self)
            eager.reports = dict(self.reports)
            for name in ("_patience", "_filling", "_persist_rounds"):
                setattr(eager, name, copy.deepcopy(getattr(self, name)))
            eager._untold = {}
            missed = [e for e in decide(eager, before) if not isinstance(e, AskPersist)]
            assert missed == [], (event, missed)
        return effects

    monkeypatch.setattr(Root, "_decide", decided)
    monkeypatch.setattr(Root, "handle", handled)
    for seed in range(40 if shape is None else 12):
        found = run_seed(Search(shape), seed)
        assert found is None, found.text
    assert seen["counted"] > seen["looked"] / 2
