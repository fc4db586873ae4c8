"""Pictures are written whole, the same each time, for ordinary results and for odd ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from castor_analysis.pictures import outcome as pictures
from castor_analysis.pictures.outcome import draw_comparison, draw_timeline
from castor_analysis.summary import summarise
from castor_records.events.event import Entry, Event
from castor_records.events.failures import (
    Failed,
    Planned,
    Replaced,
    Resumed,
    Retrieved,
    RunEnded,
    RunStarted,
    Serialised,
)
from castor_sim.simpy_engine import SimpyEngine
from castor_sim.strategy_costs import StrategyCosts
from castor_sim.tally import WASTE_KINDS, Operations, Tally

pytestmark = pytest.mark.long  # together, not one by one

DAY_NS = 86_400 * 10**9


def document(strategies: dict[str, list[Tally]]) -> dict[str, object]:
    return {
        "name": "an experiment",
        "job": {"machines": 16, "interruptions_per_day": 2.0},
        "strategies": {
            name: summarise(tallies, gpus=128, price_per_gpu_hour=4.0).as_json()
            for name, tallies in strategies.items()
        },
    }


def tally(**wasted: int) -> Tally:
    return Tally(wall_ns=100, useful_ns=100 - sum(wasted.values()), **wasted)


def failure(time_ns: int, kind: str) -> Entry[Event]:
    return Entry(time_ns, Failed(failure=kind, machine=1))


def recovered(time_ns: int, iteration: int, lost_ns: int) -> list[Entry[Event]]:
    return [
        failure(time_ns, "hardware" if iteration % 2 else "software"),
        Entry(time_ns + 15, Planned(iteration=iteration, tier="peer")),
        Entry(time_ns + 20, Serialised()),
        Entry(time_ns + 30, Replaced()),
        Entry(time_ns + 33, Retrieved(iteration=iteration)),
        Entry(time_ns + 60, Resumed(iteration=iteration, tier="peer", lost_progress_ns=lost_ns)),
    ]


def story(count: int) -> list[Entry[Event]]:
    events: list[Entry[Event]] = [Entry(0, RunStarted())]
    for number in range(count):
        events += recovered(1000 * (number + 1), 9 * (number + 1), 40)
    return [*events, Entry(1000 * (count + 1), RunEnded(iteration=9 * count + 9))]


def written(paths: tuple[Path, Path]) -> list[bytes]:
    png, pdf = (path.read_bytes() for path in paths)
    assert png.startswith(b"\x89PNG")
    assert pdf.startswith(b"%PDF")
    assert b"CreationDate" not in pdf
    return [png, pdf]


def test_a_comparison_is_the_same_file_each_time(tmp_path: Path) -> None:
    result = document(
        {
            "gemini": [tally(lost_progress_ns=1, warm_up_ns=2), tally(warm_up_ns=3)],
            "strawman": [tally(**{f"{part}_ns": 5 for part in WASTE_KINDS})] * 2,
        }
    )
    paths = draw_comparison(result, tmp_path / "first")
    assert [path.name for path in paths] == ["first.png", "first.pdf"]
    assert written(paths) == written(draw_comparison(result, tmp_path / "second"))


def test_a_comparison_without_any_waste(tmp_path: Path) -> None:
    written(draw_comparison(document({"only": [tally()]}), tmp_path / "clean"))
    with pytest.raises(ValueError, match="no strategy"):
        draw_comparison(document({}), tmp_path / "none")


@pytest.mark.long
@pytest.mark.parametrize("recoveries", [0, 1, 9])
def test_a_timeline_is_the_same_file_each_time(tmp_path: Path, recoveries: int) -> None:
    events = story(recoveries)
    paths = draw_timeline(events, "a run", tmp_path / "first")
    assert written(paths) == written(draw_timeline(iter(events), "a run", tmp_path / "second"))


@pytest.mark.parametrize("kept", [0, 1, 2, 4])
def test_a_run_that_ended_early_is_drawn_all_the_same(tmp_path: Path, kept: int) -> None:
    written(draw_timeline(story(1)[:kept], "cut off", tmp_path / "cut"))


def test_every_part_and_phase_has_a_look_of_its_own() -> None:
    looks = pictures._LOOK
    assert set(WASTE_KINDS) <= set(looks)
    assert set(pictures.PHASES) - {pictures.TRAINING} <= set(looks)
    assert len(set(looks.values())) == len(looks)


def test_the_log_of_a_real_run_is_drawn(tmp_path: Path) -> None:
    events: list[Entry[Event]] = []
    profile = StrategyCosts(iteration_ns=60 * 10**9, storage_every=10, warm_up_ns=10**10)
    SimpyEngine(
        profile, Operations(2), [[0, 1], [1, 0]], [], horizon_ns=DAY_NS, observe=events.append
    ).run()
    written(draw_timeline(events, "quiet", tmp_path / "quiet"))
