"""castor compare: real runs beside what the simulator says of them."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from castor.commands.overwriting import Overwrite
from castor_configs.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castor_analysis.compare.comparison import Comparison
    from castor_analysis.compare.measured_run import MeasuredRun
    from castor_analysis.compare.points import Point
    from castor_sim.iteration.measured import MeasuredProfile

STDERR = Console(stderr=True, highlight=False, soft_wrap=True)
_SHOWN = 40
"""Points printed one by one; of more, the worst."""


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders, repetitions of a setting among them."),
    ],
    profile: Annotated[
        list[Path] | None,
        typer.Option(
            "--profile",
            metavar="P",
            help="Predict from a calibrated profile; repeat for each model. Without: calibrate on "
            "each model's runs without checkpoints at its middle bandwidth.",
        ),
    ] = None,
    sim: Annotated[
        str | None,
        typer.Option(
            "--sim",
            metavar="CONFIG",
            help="Predict from an experiment's model and cluster; calibrate on nothing.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="DIR", help="Write compare.json, compare.csv and compare.html."
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print compare.json.")] = False,
) -> None:
    """Set real runs beside simulated ones: each quantity measured, simulated, and the error.

    Runs that were calibrated on never count as checks.

    Example: castor compare out/compare/runs/* --out out/compare
    """
    from castor_analysis.compare.comparison import compare_runs
    from castor_analysis.compare.measured_run import read_run
    from castor_analysis.compare.page import comparison_page
    from castor_analysis.compare.prediction import FromExperiment
    from castor_analysis.compare.report import REPORT_FILES, compare_document, write_report
    from castor_analysis.compare.settings import refuse_twice
    from castor_configs.atomic import output_files
    from castor_sim.iteration.measured import load_profile

    if profile and sim is not None:
        raise InputError("is another way to predict than --profile: give one", key="--sim")
    refuse_twice(runs)
    if out is not None:
        output_files(out, REPORT_FILES, overwrite=overwrite, reads=profile or ())
    comparison = compare_runs(
        [read_run(path) for path in runs],
        calibrate=_calibrate,
        profiles=[load_profile(path) for path in profile or ()],
        predictor=None if sim is None else FromExperiment(sim),
    )
    if not comparison.held_out:
        raise InputError(
            "nothing is left to check: every run was calibrated on, or the simulator has no "
            f"scheme for it ({_reasons(comparison)})",
            key="RUN",
        )
    if sim is not None:
        _note_layout(sim, comparison)
    document = compare_document(
        comparison,
        command=["castor", *sys.argv[1:]],
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if out is not None:
        page = comparison_page(comparison, document)
        written = write_report(document, comparison, out, page, overwrite=overwrite)
        STDERR.print(f"wrote {', '.join(map(str, written))}", style="dim")
    if as_json:
        typer.echo(json.dumps(document, indent=1, allow_nan=False))
        return
    _print(comparison, document)


def _calibrate(runs: Sequence[MeasuredRun]) -> MeasuredProfile:
    from castor_analysis.calibration.calibrate import calibrate

    return calibrate([run.folder for run in runs]).profile


def _note_layout(sim: str, comparison: Comparison) -> None:
    """Say where an experiment's machines are unlike the runs': its times are of another cluster."""
    from castor_analysis.compare.prediction import FromExperiment

    gpus = FromExperiment(sim).case(comparison.runs[0].setting).gpus
    ranks = sorted({run.setting.ranks_per_node for run in comparison.runs})
    if ranks != [gpus]:
        STDERR.print(
            f"--sim {sim} has {gpus} GPUs on a machine, and these runs "
            f"{', '.join(map(str, ranks))}: its times are of another cluster",
            style="yellow",
            markup=False,
        )


def _reasons(comparison: Comparison) -> str:
    found = [f"{what}: {why}" for what, why in comparison.left_out.items()]
    return "; ".join(found) or "give runs of other settings"


def _print(comparison: Comparison, document: dict[str, Any]) -> None:
    console = Console(highlight=False, markup=False)
    console.print(_points(comparison))
    table = Table(title="By quantity", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("quantity", no_wrap=True)
    for heading in ("points", "median error", "worst"):
        table.add_column(heading, justify="right")
    for quantity, row in document["by_quantity"].items():
        table.add_row(
            quantity,
            str(row["points"]),
            _percent(row["median_error"]),
            _percent(row["worst_error"]),
        )
    table.add_section()
    table.add_row(
        "all",
        str(len(comparison.held_out)),
        _percent(comparison.median_error),
        _percent(comparison.worst_error),
    )
    console.print(table)
    for order in comparison.orders:
        if not order.right:
            where = ", ".join(str(order.setting.get(key)) for key in ("link", "model"))
            pairs = "; ".join(" and ".join(pair) for pair in order.wrong)
            console.print(f"wrong order of {pairs} at {where}", style="red")
    right = sum(order.right for order in comparison.orders)
    console.print(f"order of the schemes: right in {right} of {len(comparison.orders)} settings")
    console.print(f"compute: {', '.join(document['compute'])}")
    console.print(f"calibrated on: {', '.join(comparison.calibrated_on) or 'no run'}")
    for what, why in comparison.left_out.items():
        STDERR.print(f"left out {what}: {why}", style="yellow", markup=False)


def _points(comparison: Comparison) -> Table:
    from castor_analysis.compare.report import telling_keys

    points = list(comparison.held_out)
    title = "Held-out points"
    if len(points) > _SHOWN:
        # What has no error at all (expected, and not there) is worst.
        points = sorted(points, key=lambda p: -abs(p.error) if p.error is not None else -1e9)
        points = points[:_SHOWN]
        title = f"The {_SHOWN} held-out points of {len(comparison.held_out)} that are off most"
    # Which phases share a point takes more room than it is worth here.
    keys = [key for key in telling_keys(points) if key != "phases"]
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    # In one column: beside each other they leave a setting five characters of 80 columns.
    table.add_column("quantity and setting")
    for heading in ("measured", "10-90 %", "simulated", "error"):
        table.add_column(heading, justify="right", no_wrap=True)
    for point in points:
        spread = f"{_value(point, point.spread[0])}-{_value(point, point.spread[1])}"
        setting = ", ".join(str(point.setting[key]) for key in keys if key in point.setting)
        table.add_row(
            Text.assemble((point.quantity, "bold"), "\n", setting),
            _value(point, point.measured),
            spread,
            _value(point, point.simulated),
            "-" if point.error is None else f"{point.error:+.1%}",
        )
    return table


def _value(point: Point, value: float) -> str:
    return f"{value:g}" if point.unit == "iterations" else f"{value:.3f}"


def _percent(error: float | None) -> str:
    return "-" if error is None else f"{error:.1%}"
