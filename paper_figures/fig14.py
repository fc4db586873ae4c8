"""Fig. 14: what a recovery of Gemini spends its time on, GPT-2 100B on 16 p4d machines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from castor_analysis.summary import interval_of
from castor_records.events.event import Entry, Event
from castor_records.events.failures import Detected, Failed, Resumed, Retrieved
from castor_sim.setup import Setup
from castor_sim.simpy_engine import SimpyEngine
from castor_sim.tally import Tally
from castor_traces.picture_style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    SKY_BLUE,
    VERMILION,
    picture,
)
from paper_figures.figure_data import Effort, FigureData, Row
from paper_figures.paper_job import setup_of
from paper_figures.published import published_values
from paper_figures.single_failures import DAY_NS, machine_sets, one_a_day

FIGURE = "fig14"
PHASES = {
    "detection": "Detection",
    "serialisation": "Serialisation",
    "replacement_wait": "Wait for the replacement",
    "retrieval": "Retrieval",
    "warm_up": "Warm-up",
}
"""Parts of a tally, in order of time, and how they are called here."""

TOTAL = "Total"
_DETECTION = (
    "three polls of 5 s, and up to 5 s more or 3 s less, as a failure falls anywhere in the "
    "periods of polls and heartbeats"
)
_OVERLAP = (
    "the machine is requested at detection, while the others serialise; one after the other, as "
    "the paper's total seems to be, it takes 12.7 min on average"
)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One bar."""

    name: str
    hardware: bool
    standbys: int


SCENARIOS = (
    Scenario("Software", hardware=False, standbys=0),
    Scenario("Hardware, on demand", hardware=True, standbys=0),
    Scenario("Hardware, standby", hardware=True, standbys=1),
)
IN_SEQUENCE = "Hardware, in sequence"


def compute(effort: Effort) -> FigureData:
    """Return the parts of a recovery from the event logs of runs with one failure each.

    One run of the simpy engine a seed, with its own time of failure, machine and time until the
    replacement is there (4 to 7 min). "In sequence" adds the whole of that time to the parts of a
    software failure, as if the request waited for the serialisation.
    """
    rows: list[Row] = []
    for scenario in SCENARIOS:
        effort.progress(f"{FIGURE}: {scenario.name}")
        setup = setup_of({"replacement.standbys": str(scenario.standbys)})
        tallies = [_one_failure(setup, seed, scenario.hardware) for seed in effort.all_seeds()]
        rows += _bar(scenario.name, tallies)
    software = next(row for row in rows if (row.series, row.point) == ("Software", TOTAL))
    low_ns, high_ns = setup_of({}).experiment.replacement.provision
    rows.append(
        Row(
            figure=FIGURE,
            series=IN_SEQUENCE,
            point=TOTAL,
            ours=software.ours + (low_ns + high_ns) / 2 / 60e9,
            unit="min",
            paper=published_values(FIGURE)[("Total", "Hardware, on demand")].value,
            note="software's total and 5.5 min, the mean of 4 to 7 min",
        )
    )
    return FigureData((*rows, _highfreq_save()))


def _one_failure(setup: Setup, seed: int, hardware: bool) -> Tally:
    sets = machine_sets(setup.placements["gemini"], 1, recoverable=True)
    strikes = one_a_day(setup, seed, 1, sets=sets, hardware=hardware)
    entries: list[Entry[Event]] = []
    tally = SimpyEngine(
        setup.costs["gemini"],
        setup.operations,
        setup.placements["gemini"].replicas,
        [strikes],
        horizon_ns=int(strikes.time_ns[-1]) + DAY_NS,
        observe=entries.append,
    ).run()
    _check_against_log(tally, entries)
    return tally


def _check_against_log(tally: Tally, entries: list[Entry[Event]]) -> None:
    """Hold the tally's parts to the instants that the event log tells."""
    at_ns = {type(entry.event): entry.time_ns for entry in entries}
    assert at_ns[Detected] - at_ns[Failed] == tally.detection_ns
    assert at_ns[Resumed] - at_ns[Retrieved] == tally.warm_up_ns
    down_ns = sum(getattr(tally, f"{phase}_ns") for phase in PHASES)
    assert at_ns[Resumed] - at_ns[Failed] == down_ns


def _bar(name: str, tallies: list[Tally]) -> Iterator[Row]:
    published = published_values(FIGURE)
    for phase, label in PHASES.items():
        interval = interval_of([getattr(tally, f"{phase}_ns") / 1e9 for tally in tallies])
        paper = published.get(("Parts", label))
        notes = {"Detection": _DETECTION, "Retrieval": 'the text says "less than 3 s"'}
        yield Row(
            figure=FIGURE,
            series=name,
            point=label,
            ours=interval.mean,
            unit="s",
            paper=paper.value if paper else None,
            note=notes.get(label, ""),
            low=interval.low,
            high=interval.high,
        )
    totals = [sum(getattr(tally, f"{phase}_ns") for phase in PHASES) / 60e9 for tally in tallies]
    interval = interval_of(totals)
    paper = published.get(("Total", name))
    yield Row(
        figure=FIGURE,
        series=name,
        point=TOTAL,
        ours=interval.mean,
        unit="min",
        paper=paper.value if paper else None,
        note=_OVERLAP if name == "Hardware, on demand" else "",
        low=interval.low,
        high=interval.high,
    )


def _highfreq_save() -> Row:
    save_ns = setup_of({}).costs["highfreq"].storage_stall_ns
    return Row(
        figure=FIGURE,
        series="HighFreq",
        point="Serialisation of a checkpoint",
        ours=save_ns / 1e9,
        unit="s",
        paper=published_values(FIGURE)[("Parts", "HighFreq serialisation")].value,
    )


def draw(data: FigureData, path_stem: str | Path) -> None:
    """Draw a stacked bar for each scenario, with the paper's totals as marks; PNG and PDF."""
    from matplotlib.container import BarContainer  # noqa: PLC0415 - matplotlib loads late

    with picture(path_stem, 2.3) as figure:
        axes = figure.subplots()
        names = [scenario.name for scenario in SCENARIOS]
        styles = zip(
            PHASES.values(),
            (VERMILION, ORANGE, SKY_BLUE, BLACK, GREEN),
            ("", "///", "...", "", "\\\\\\"),
            strict=True,
        )
        left = dict.fromkeys(names, 0.0)
        for label, colour, hatch in styles:
            widths = [data.at(FIGURE, name, label).ours / 60 for name in names]
            axes.barh(
                range(len(names)), widths, left=list(left.values()), height=0.55, color=colour,
                hatch=hatch, edgecolor="white", linewidth=0.0, label=label,
            )  # fmt: skip
            left = {name: left[name] + width for name, width in zip(names, widths, strict=True)}
        totals = [data.at(FIGURE, name, TOTAL) for name in names]
        for height, row in enumerate(totals):
            axes.annotate(
                f"{row.ours:.1f}", (row.ours, height), xytext=(3, 0), textcoords="offset points",
                va="center",
            )  # fmt: skip
            if row.paper is not None:
                axes.plot(
                    [row.paper] * 2, [height - 0.38, height + 0.38], color=BLACK, linewidth=1.4
                )
        sequence = data.at(FIGURE, IN_SEQUENCE, TOTAL)
        axes.plot(
            [sequence.ours], [1], "D", mfc="white", mec=BLUE, label="request after serialising"
        )
        axes.plot([], [], "|", color=BLACK, markersize=9, mew=1.4, label="paper, total")
        axes.set_yticks(range(len(names)), [name.replace(", ", ",\n") for name in names])
        axes.invert_yaxis()
        axes.set_xlim(0, 14)
        axes.set_xlabel("From the failure until training goes on (min)")
        axes.grid(visible=True, axis="x")
        bars = [part for part in axes.containers if isinstance(part, BarContainer)]
        lines = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
        figure.legend(handles=[*bars, *lines], loc="outside upper center", ncols=2)
