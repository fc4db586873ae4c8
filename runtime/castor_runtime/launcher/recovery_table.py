"""Recoveries as a table for a terminal: a row each, a column for each phase of the outage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from castor_records.phases import MEASURED
from castor_records.recoveries import Recovery

_HEADINGS = {
    "detection": "detect",
    "interrupted": "again",
    "replacement": "replace",
    "planning": "plan",
    "retrieval": "fetch",
    "first_iteration": "first",
}


def recovery_table(recoveries: Sequence[Recovery]) -> Table:
    """Return the recoveries of a run, narrow enough for 80 columns."""
    table = plain_table("Recoveries, phases in seconds", gap=0)
    table.add_column("lost", no_wrap=True)
    table.add_column("from", justify="right", no_wrap=True)
    table.add_column("redo", justify="right", no_wrap=True)
    shown = [
        phase
        for phase in (*MEASURED, "total")
        if phase != "interrupted" or any(one.seconds[phase] for one in recoveries)
    ]
    add_phases(table, shown)
    for one in recoveries:
        what = "machine" if one.kind == "hardware" else "trainer"
        table.add_row(
            f"{what} {','.join(map(str, one.machines))}",
            "-" if one.iteration is None else str(one.iteration),
            "-" if one.iterations_lost is None else str(one.iterations_lost),
            *phase_cells(one.seconds, shown),
        )
    return table


def plain_table(title: str, *, gap: int = 1) -> Table:
    """Return an empty table with a line under its headings and no frame.

    Args:
        title: stands above it, at the left.
        gap: blank characters after each column, beside the one between columns.
    """
    return Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, gap, 0, 0), show_edge=False
    )


def add_phases(table: Table, phases: Sequence[str]) -> None:
    """Add a column for each of `phases`, which are of `MEASURED` or "total"."""
    for phase in phases:
        table.add_column(_HEADINGS.get(phase, phase), justify="right", no_wrap=True)


def phase_cells(seconds: Mapping[str, float | None], phases: Sequence[str]) -> list[str]:
    """Return what a row shows of `phases`: "-" for one that was not reached."""
    values = [seconds[phase] for phase in phases]
    return ["-" if value is None else f"{value:.3f}" for value in values]
