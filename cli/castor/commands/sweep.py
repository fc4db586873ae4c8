"""castor sweep: an experiment over a grid of parameters."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from castor.commands.overwriting import Overwrite

if TYPE_CHECKING:
    from castor_analysis.sweep.run import Sweep, SweepResult

_STDERR = Console(stderr=True, highlight=False, soft_wrap=True)
_MOST_COLUMNS = 5
_INTERRUPTED = 130


def sweep(
    experiment: Annotated[
        str,
        typer.Argument(metavar="EXPERIMENT.toml", help="An experiment, by path or shipped name."),
    ],
    over: Annotated[
        list[str],
        typer.Option(
            "--over",
            metavar="KEY=V1,V2,...",
            help="A parameter to vary; give it again for a grid.",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key at all points."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Replications of each point.")] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Processes at a time; 0: one per core.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Results; by default sweep-EXPERIMENT here."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print sweep.json.")] = False,
) -> None:
    """Run an experiment over a grid of parameters.

    Finished points are kept in DIR. Run the same command again, after an
    interruption or with more values: only what is missing or changed is run.

    Example: castor sweep opt-175b --over failures.rate=1%/day,3%/day
    --over replicas=1,2,3
    """
    from castor_analysis.sweep.run import SweepError, make_sweep
    from castor_analysis.sweep.tables import SWEEP_FILES
    from castor_configs.atomic import output_files

    fixed = list(overrides or ())
    if seeds is not None:
        fixed.append(f"seeds={seeds}")
    wanted = make_sweep(experiment, over, fixed)
    folder = out if out is not None else Path(f"sweep-{Path(experiment).stem}")
    output_files(folder, SWEEP_FILES, overwrite=overwrite)
    try:
        _run(wanted, folder, jobs or os.cpu_count() or 1, as_json=as_json)
    except KeyboardInterrupt:
        _STDERR.print(
            f"interrupted: finished points are kept in {folder}; "
            "the same command goes on from there",
            markup=False,
        )
        raise typer.Exit(_INTERRUPTED) from None
    except SweepError as error:
        _STDERR.print(f"castor: {error}", style="red", markup=False)
        raise typer.Exit(1) from error


def _run(wanted: Sweep, folder: Path, jobs: int, *, as_json: bool) -> None:
    from castor_analysis.sweep.picture import draw_sweep
    from castor_analysis.sweep.tables import write_sweep

    result = _with_progress(wanted, folder, jobs)
    document = write_sweep(result, folder)
    drawn = draw_sweep(result, folder / "sweep")
    if as_json:
        typer.echo(json.dumps(document, indent=1))
    else:
        Console(highlight=False).print(results_table(result))
    pictures = ", sweep.png, sweep.pdf" if drawn else ""
    _STDERR.print(f"results in {folder}: sweep.csv, sweep.json{pictures}", markup=False)


def _with_progress(wanted: Sweep, folder: Path, jobs: int) -> SweepResult:
    from castor_analysis.sweep.run import run_sweep

    columns = (TextColumn("sweeping"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Without a terminal a bar would fill a log file with itself.
    with Progress(
        *columns, console=_STDERR, transient=True, disable=not _STDERR.is_terminal
    ) as progress:
        task = progress.add_task("", total=None)

        def begun(missing: int, kept: int) -> None:
            progress.update(task, total=missing)
            there = f"; {kept} are there already, unchanged" if kept else ""
            _STDERR.print(f"{len(wanted.points)} points, {missing} to run{there}", markup=False)

        return run_sweep(
            wanted, folder, jobs=jobs, begun=begun, finished_one=lambda: progress.advance(task)
        )


def results_table(result: SweepResult) -> Table:
    """Return the ratios: a row for each point, a column for each strategy, the best in bold.

    More strategies than fit beside each other go below each other.
    """
    from castor_analysis.sweep.tables import strategy_names

    names = strategy_names(result)
    wide = len(names) <= _MOST_COLUMNS
    table = Table(
        title=f"{result.sweep.experiment}: effective training time ratio",
        caption="means over the replications; sweep.csv has intervals and all the rest",
    )
    for axis in result.sweep.axes:
        table.add_column(axis.key, overflow="fold")
    for heading in names if wide else ("strategy", "ratio"):
        table.add_column(heading, justify="right" if heading != "strategy" else "left")
    for point, document in zip(result.sweep.points, result.documents, strict=True):
        means = {
            name: summary["effective_training_time_ratio"]["mean"]
            for name, summary in document["strategies"].items()
        }
        best = max(means.values())
        shown = {
            name: f"[bold]{mean:.4f}[/bold]" if mean == best else f"{mean:.4f}"
            for name, mean in means.items()
        }
        written = [value.replace("[", r"\[") for _, value in point.settings]
        if wide:
            table.add_row(*written, *(shown.get(name, "-") for name in names))
        else:
            for name, ratio in shown.items():
                table.add_row(*written, name, ratio)
            table.add_section()
    return table
