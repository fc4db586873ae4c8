"""`castor interval`: how much work to do between two checkpoints."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from castor.commands.reading import read_option
from castor_configs.errors import InputError
from castor_policy.frequency import (
    daly_interval_s,
    expected_slowdown,
    optimal_interval_s,
    young_interval_s,
)


@dataclass(frozen=True, slots=True)
class IntervalReport:
    """What `castor interval --json` prints. Intervals are work between two checkpoints.

    A slowdown is expected wall time over work, failures during restart included; None where it is
    larger than a float can hold.
    """

    mtbf_s: float
    checkpoint_time_s: float
    restart_time_s: float
    young_s: float
    daly_s: float
    optimal_s: float
    young_slowdown: float | None
    daly_slowdown: float | None
    expected_slowdown: float | None


def interval(
    mtbf: Annotated[
        str,
        typer.Option(
            help="Mean time between failures of the whole job: 24h, 90min, 1.5d.",
            metavar="TIME",
        ),
    ],
    checkpoint_time: Annotated[
        str,
        typer.Option(help="How long training stands still for a checkpoint.", metavar="TIME"),
    ],
    restart_time: Annotated[
        str,
        typer.Option(
            help="From a failure until training goes on from the last checkpoint: detection, "
            "replacement, loading, warm-up.",
            metavar="TIME",
        ),
    ] = "0s",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of the table.")
    ] = False,
) -> None:
    """Say how often to checkpoint: Young, Daly, and the exact optimum.

    Failures are taken as exponential; they may strike a checkpoint and a restart too.

    Example: castor interval --mtbf 24h --checkpoint-time 5min --restart-time 10min
    """
    report = interval_report(
        _duration_s(mtbf, "--mtbf", zero_allowed=False),
        _duration_s(checkpoint_time, "--checkpoint-time"),
        _duration_s(restart_time, "--restart-time"),
    )
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2, allow_nan=False))
    else:
        _print_table(report)


def interval_report(
    mtbf_s: float, checkpoint_time_s: float, restart_time_s: float
) -> IntervalReport:
    """Return the three intervals and what a run takes with each.

    Raises:
        ValueError: a time is out of its range (`castor_policy.frequency`).
    """

    def slowdown(interval_s: float) -> float | None:
        factor = expected_slowdown(interval_s, checkpoint_time_s, restart_time_s, mtbf_s)
        return factor if math.isfinite(factor) else None

    young_s = young_interval_s(checkpoint_time_s, mtbf_s)
    daly_s = daly_interval_s(checkpoint_time_s, mtbf_s)
    optimal_s = optimal_interval_s(checkpoint_time_s, mtbf_s)
    return IntervalReport(
        mtbf_s=mtbf_s,
        checkpoint_time_s=checkpoint_time_s,
        restart_time_s=restart_time_s,
        young_s=young_s,
        daly_s=daly_s,
        optimal_s=optimal_s,
        young_slowdown=slowdown(young_s),
        daly_slowdown=slowdown(daly_s),
        expected_slowdown=slowdown(optimal_s),
    )


def _duration_s(text: str, option: str, *, zero_allowed: bool = True) -> float:
    from castor_configs.quantities import parse_seconds

    duration_s = read_option(parse_seconds, text, option)
    if duration_s == 0 and not zero_allowed:
        raise InputError(f'expected a time above 0, such as "24h", not "{text}"', key=option)
    return duration_s


def _print_table(report: IntervalReport) -> None:
    from castor_configs.readable import format_seconds

    table = Table(
        title=f"MTBF {format_seconds(report.mtbf_s)}, "
        f"checkpoint {format_seconds(report.checkpoint_time_s)}, "
        f"restart {format_seconds(report.restart_time_s)}"
    )
    table.add_column("Rule")
    table.add_column("Work between\ncheckpoints", justify="right")
    table.add_column("Wall time\nover work", justify="right")
    table.add_column("Added to\n24 h of work", justify="right")
    rows = (
        ("Young, first order", report.young_s, report.young_slowdown),
        ("Daly, higher order", report.daly_s, report.daly_slowdown),
        ("Exact optimum", report.optimal_s, report.expected_slowdown),
    )
    for rule, interval_s, slowdown in rows:
        table.add_row(
            rule,
            format_seconds(interval_s),
            f"{slowdown:.7g}" if slowdown is not None else "beyond measure",
            format_seconds(86_400.0 * (slowdown - 1.0)) if slowdown is not None else "-",
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(_reading(report, format_seconds(report.optimal_s)))


def _reading(report: IntervalReport, optimal: str) -> str:
    slowdown = report.expected_slowdown
    if slowdown is None:
        return "No interval helps: failures come so fast that practically no work gets done."
    if report.optimal_s == 0:
        return (
            "A checkpoint that costs nothing is best taken all the time; what remains is "
            f"restarts, {slowdown - 1:.2%} on top of the work."
        )
    return (
        f"Checkpoint after every {optimal} of work: checkpoints, lost "
        f"work and restarts then add {slowdown - 1:.2%} to the run, and no interval adds less."
    )
