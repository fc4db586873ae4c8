"""How much is done for a report: counted at two sizes, and never timed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest

from castor_sim.explore import session
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
