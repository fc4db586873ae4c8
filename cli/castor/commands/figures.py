"""castor figures: the paper's figures, with its values as marks on ours."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from castor.commands.overwriting import Overwrite
from castor_configs.plugins import and_plugins

if TYPE_CHECKING:
    from paper_figures.catalog import Drawn
    from paper_figures.figure_data import Row

STDERR = Console(stderr=True, highlight=False)

_QUICK_SEEDS = 4
_QUICK_DAYS = 60
_SHOWN_WHOLE = 5


def figures(
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="FIG",
            help=f"table1, fig09, ...{and_plugins('figures')}; may be repeated.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where PDF, PNG and CSV go.")
    ] = Path("out/figures"),
    seeds: Annotated[
        int | None, typer.Option(min=2, help="Replications of a simulated point; 20 by default.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="4 replications of 60 days instead of 20 of a year.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print every number as JSON instead of the table.")
    ] = False,
    calibration: Annotated[
        bool,
        typer.Option(
            "--calibration",
            help="Instead: fit the iteration simulator anew, print its leave-one-out errors.",
        ),
    ] = False,
) -> None:
    """Draw the paper's Tables 1 and 2 and Fig. 7 to 16, and compare them number by number.

    Each figure becomes a PDF, a PNG and a CSV: the paper's values as marks on ours.

    Example: castor figures --only fig09 --only fig15 --out out/figures
    """
    from castor_configs.atomic import output_files
    from paper_figures.catalog import chosen_figures, make_figure
    from paper_figures.figure_data import Effort

    if calibration:
        from castor.commands.figures_calibration import print_calibration

        print_calibration(as_json=as_json)
        return
    names = chosen_figures(only or ())
    files = [f"{name}{suffix}" for name in names for suffix in (".png", ".pdf", ".csv")]
    output_files(out, files, overwrite=overwrite)
    with STDERR.status("figures") as status:
        effort = Effort(
            seeds=seeds or (_QUICK_SEEDS if quick else Effort().seeds),
            days=_QUICK_DAYS if quick else Effort().days,
            progress=status.update,
        )
        drawn = []
        for name in names:
            status.update(name)
            drawn.append(make_figure(name, out, effort))
    STDERR.print(f"{', '.join(names)} as PDF, PNG and CSV in {out}", style="dim")
    if as_json:
        document = {"seeds": effort.seeds, "days": effort.days, "figures": _as_json(drawn)}
        typer.echo(json.dumps(document, indent=2, allow_nan=False))
    else:
        _print_table(drawn)


def _as_json(drawn: Iterable[Drawn]) -> dict[str, dict[str, object]]:
    return {
        figure.name: {
            "csv": str(figure.csv),
            "png": str(figure.png),
            "pdf": str(figure.pdf),
            "rows": [row.as_json() for row in figure.data.rows],
        }
        for figure in drawn
    }


def _print_table(drawn: Iterable[Drawn]) -> None:
    notes: list[str] = []
    table = Table(title="The paper's values and ours")
    table.add_column("Figure", no_wrap=True)
    table.add_column("Point")
    for heading in ("Paper", "Ours", "Difference", "Note"):
        table.add_column(heading, justify="right", no_wrap=True)
    shortened = False
    for figure in drawn:
        compared = [row for row in figure.data.rows if row.paper is not None]
        rows = shortened_rows(compared)
        shortened |= len(rows) < len(compared)
        series = ("", "")
        for row in rows:
            if (row.figure, row.series) != series:
                series = (row.figure, row.series)
                table.add_row(row.figure, Text(row.series, style="bold"))
            if row.note and row.note not in notes:
                notes.append(row.note)
            table.add_row(
                row.figure,
                f"  {row.point}",
                *(_shown(value, row.unit) for value in (row.paper, row.ours)),
                _difference(row),
                f"[{notes.index(row.note) + 1}]" if row.note else "",
            )
        table.add_section()
    console = Console(highlight=False, markup=False)
    console.print(table)
    for number, note in enumerate(notes, start=1):
        console.print(f"[{number}] {note}.")
    if shortened:
        console.print(
            f"Of a simulated line of more than {_SHOWN_WHOLE} points: the first, the last and the "
            "one furthest from the paper; the CSV has them all."
        )


def shortened_rows(rows: Sequence[Row]) -> list[Row]:
    """Return `rows` with long simulated series cut to first, last and furthest from the paper."""
    kept: list[Row] = []
    series: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        series.setdefault((row.figure, row.series), []).append(row)
    for points in series.values():
        if len(points) <= _SHOWN_WHOLE or points[0].low is None:
            kept += points
            continue
        furthest = max(points, key=lambda row: abs(row.difference or 0.0))
        kept += [row for row in points if row in (points[0], points[-1], furthest)]
    return kept


def _shown(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    if unit == "ratio":
        return f"{value:.3f}"
    return f"{value:.2f} {unit}"


def _difference(row: Row) -> str:
    difference = row.difference
    if difference is None:
        return ""
    # z: no "-0.00" for what rounds to nothing.
    return f"{difference:+z.4f}" if row.unit == "ratio" else f"{difference:+z.2f}"
