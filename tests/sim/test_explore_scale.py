"""How much is done for a report: counted at two sizes, and never timed."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from castor_policy.agents import roll_call
from castor_policy.agents.effects import AskPersist, RootEffect
from castor_policy.agents.events import ReportChanged, RootEvent, Tick
from castor_policy.agents.root import Root
from castor_sim.explore import peer_watch, session
from castor_sim.explore.names import Names
from castor_sim.explore.run import Search, run_seed
from castor_sim.explore.schedule import Fault
from castor_sim.explore.world import Shape, World

SMALL, LARGE = 8, 32


@dataclass(frozen=True, slots=True)
class Work:
    """What a run with one machine that is lost, or drained, took."""

    reports: int
    deliveries: int
    counted: int
    looks: int
    compared: int


def work(kind: str, machines: int, monkeypatch: pytest.MonkeyPatch) -> Work:
    counts: Counter[str] = Counter()

    def count(owner: object, name: str, key: str, many: Callable[..., int]) -> None:
        original = getattr(owner, name)

        def counted(*given: Any, **more: Any) -> Any:
            counts[key] += many(*given)
            return original(*given, **more)

        patched.setattr(owner, name, counted)

    with monkeypatch.context() as patched:
        of_reports = lambda _, events: sum("/agents/" in event.key for event in events)  # noqa: E731
        count(session.Session, "_changed", "deliveries", of_reports)
        # Not at ticks: of more machines the slowest is slower, and is waited for.
        handle = Root.handle

        def at(root: Root, event: RootEvent, *times: Any) -> list[RootEffect]:
            counts["ticks"] = isinstance(event, Tick)
            return handle(root, event, *times)

        patched.setattr(Root, "handle", at)
        count(Root, "_decide", "looks", lambda *_: 1 - counts["ticks"])
        count(roll_call, "marks", "compared", lambda *_: 1)
        count(roll_call.RollCall, "take", "counted", lambda *_: 1)
        patched.setattr(roll_call.RollCall, "validate", lambda _: None)
        # A link that loses packets is looked at, and the more of them there are the more do.
        patched.setattr(peer_watch, "_BURST", 0.0)
        count(Names, "reported", "reports", lambda *_: 1)
        world = World(Shape(machines, standby=1, iterations=8), 1, (Fault(kind, 2.5, 2),))
        world.run()
    return Work(**{name: counts[name] for name in Work.__slots__})


@pytest.mark.parametrize("kind", ["crash", "drain"])
def test_what_a_report_costs_does_not_grow_with_the_machines(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = work(kind, SMALL, monkeypatch), work(kind, LARGE, monkeypatch)
    for done, machines in ((small, SMALL), (large, LARGE)):
        assert done.reports >= 9 * machines
        assert done.deliveries <= 2 * done.reports, "it is told to its writer and the root alone"
        # A report is marked once, and all are counted anew for each of a few plans.
        assert done.compared <= done.counted + 8 * machines
    # Beside its ticks the root looks where something happened.
    assert large.reports > 3 * small.reports
    assert large.looks < 2 * small.looks, (small, large)


@pytest.mark.parametrize("shape", [None, Shape(machines=6, standby=2)])
def test_what_the_root_did_not_look_at_would_have_changed_nothing(
    shape: Shape | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A root that looks at every report, at the time of the last look, decides nothing more."""
    handle, decide, seen = Root.handle, Root._decide, Counter[str]()
    looked_s: dict[Root, float] = {}

    def decided(self: Root, now_s: float) -> list[RootEffect]:
        looked_s[self] = now_s
        return decide(self, now_s)

    def handled(
        self: Root, event: RootEvent, now_s: float, at_s: float | None = None
    ) -> list[RootEffect]:
        before = looked_s.pop(self, now_s)
        effects = handle(self, event, now_s, at_s)
        looked = self in looked_s
        looked_s.setdefault(self, before)
        seen["looked" if looked else "counted"] += 1
        if not looked and isinstance(event, ReportChanged):
            eager = copy.copy(self)
            eager.reports = dict(self.reports)
            for name in ("_patience", "_filling", "_persist_rounds", "_wishes"):
                setattr(eager, name, copy.deepcopy(getattr(self, name)))
            eager._untold = {}
            missed = [e for e in decide(eager, before) if not isinstance(e, AskPersist)]
            assert missed == [], (event, missed)
        return effects

    monkeypatch.setattr(Root, "_decide", decided)
    monkeypatch.setattr(Root, "handle", handled)
    for seed in range(20 if shape is None else 6):
        found = run_seed(Search(shape), seed)
        assert found is None, found.text
    assert seen["counted"] > seen["looked"] / 2
