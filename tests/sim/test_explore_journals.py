"""What explored agents took in replays as it was done: failures, elections and new lives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from castor_policy.agents.root import Root
from castor_policy.agents.worker import Worker
from castor_policy.journal.replay import Replayed, replay
from castor_policy.journal.values import encode
from castor_sim.explore import journals
from castor_sim.explore.journals import Journals
from castor_sim.explore.run import Search, run_schedule, run_seeds
from castor_sim.explore.world import World

SEARCH = Search()
SEEDS = (*range(11), 21)


def lives_of(seed: int) -> list[Replayed]:
    kept = Journals()
    assert run_schedule(SEARCH, seed, SEARCH.faults(seed), kept) is None
    return [told for lines in kept.lines() for told in replay(lines)]


def test_every_life_replays_to_its_end() -> None:
    lives = [told for seed in SEEDS for told in lives_of(seed)]
    assert [told.parting for told in lives] == [None] * len(lives)
    assert len(lives) > 4 * len(SEEDS)
    # And there was something to replay: new roots, generations, second lives, standbys, old memory.
    assert sum(bool(told.terms) for told in lives) >= len(SEEDS)
    assert any(len(told.generations) > 1 for told in lives)
    assert any(told.header.incarnation.endswith(".2") for told in lives)
    assert any(told.header.standby and told.generations for told in lives)
    assert any(told.header.left for told in lives)


def test_a_replay_leads_to_the_very_state(monkeypatch: pytest.MonkeyPatch) -> None:
    worlds: list[World] = []
    begin = World.__init__

    def noted(world: World, *arguments: object, **more: object) -> None:
        begin(world, *arguments, **more)  # type: ignore[arg-type]  # passed on
        worlds.append(world)

    monkeypatch.setattr(World, "__init__", noted)
    for seed in range(5):
        told = {one.header.incarnation: one.life for one in lives_of(seed)}
        for agent in worlds[-1].agents.values():
            again = told[agent.incarnation]
            assert encode(again.worker) == encode(agent.worker)
            assert (again.root is None) == (agent.root is None)
            assert agent.root is None or encode(again.root) == encode(agent.root)


def test_it_goes_on_from_the_machines_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is full is put away wherever it happens to be: what follows stands alone."""

    class Short(journals.Lines):
        is_full = property(lambda self: len(self.lines) >= 15)  # type: ignore[assignment]

    monkeypatch.setattr(journals, "Lines", Short)
    lives = [told for seed in SEEDS for told in lives_of(seed)]
    assert [told.parting for told in lives] == [None] * len(lives)
    assert sum(told.header.worker is not None for told in lives) > 2 * len(SEEDS)
    assert sum(told.header.root is not None for told in lives) > 10


def test_journals_change_nothing_of_a_run(tmp_path: Path) -> None:
    def notes(kept: Journals | None) -> list[str]:
        faults = SEARCH.faults(7)
        world = World(SEARCH.shape_of(7), 7, faults, keep_notes=True, journals=kept)
        world.run()
        return world.notes or []

    assert notes(Journals()) == notes(None)
    run_seeds(Search(journal=str(tmp_path)), [7])
    files = sorted(tmp_path.glob("seed-7/agents/*/journal-*.jsonl"))
    assert files
    assert all(told.parting is None for f in files for told in replay(f.read_text().split("\n")))


def late(handle: Callable[..., object]) -> Callable[..., object]:
    return lambda self, event, now_s, *more: handle(self, event, now_s - 1.0, *more)


def unsettled(_: object) -> Callable[..., object]:
    return lambda _: []


@pytest.mark.parametrize(
    ("machine", "name", "changed"), [(Worker, "_settled", unsettled), (Root, "handle", late)]
)
def test_a_machine_that_was_changed_is_found(
    machine: type, name: str, changed: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Journals()
    run_schedule(SEARCH, 3, SEARCH.faults(3), kept)
    monkeypatch.setattr(machine, name, changed(getattr(machine, name)))
    lives = [told for lines in kept.lines() for told in replay(lines)]
    partings = [told.parting for told in lives if told.parting is not None]
    assert {parting.by for parting in partings} == {machine.__name__.lower()}
