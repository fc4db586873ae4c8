"""The statistics of a trace, the data sets and the presets as tables for a person to read."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from castor_configs.readable import format_seconds
from castor_traces.catalog import catalog
from castor_traces.presets import PRESETS
from castor_traces.statistics import TraceStatistics
from castor_traces.trace import Trace

_NOT_GIVEN = "-"
_LISTED_CAUSES = 8
_DAY_S = 86_400.0


def print_statistics(statistics: TraceStatistics, trace: Trace) -> None:
    """Print the statistics of a trace on standard output."""
    console = Console(highlight=False, markup=False)
    facts = Table(title=statistics.name, show_header=False, title_justify="left")
    facts.add_column()
    facts.add_column(overflow="fold")
    for what, value in _facts(statistics, trace):
        facts.add_row(what, value)
    console.print(facts)
    if not statistics.failures:
        return
    scale = Table(title="MTBF against scale", title_justify="left")
    for heading in ("Machines of a job", "MTBF", "Between interruptions"):
        scale.add_column(heading, justify="right")
    for row in statistics.mtbf_at_scale:
        scale.add_row(f"{row.machines:,}", _time(row.mtbf_s), _time(row.interruption_mtbf_s))
    console.print(scale)
    console.print(
        "An interruption may take several machines at once. Beyond the machines of\n"
        "the trace, MTBF is extrapolated from the rate per machine."
    )
    if statistics.causes:
        causes = Table(title="Causes", title_justify="left")
        causes.add_column("Cause", overflow="fold")
        causes.add_column("Failures", justify="right")
        causes.add_column("Share", justify="right")
        for cause in statistics.causes[:_LISTED_CAUSES]:
            share = cause.failures / statistics.failures
            causes.add_row(str(cause.name), f"{cause.failures:,}", f"{share:.1%}")
        more = statistics.causes[_LISTED_CAUSES:]
        if more:
            rest = sum(cause.failures for cause in more)
            causes.add_row(f"{len(more)} others", f"{rest:,}", f"{rest / statistics.failures:.1%}")
        console.print(causes)


def _facts(statistics: TraceStatistics, trace: Trace) -> list[tuple[str, str]]:
    repair, gaps = statistics.repair_s, statistics.interarrival
    kinds = ", ".join(f"{kind.failures:,} {kind.name}" for kind in statistics.kinds)
    failing = ", ".join(f"{m.name} ({m.failures})" for m in statistics.most_failing_machines[:6])
    rows = [
        ("Failures", f"{statistics.failures:,}" + (f" ({kinds})" if kinds else "")),
        (
            "Machines",
            f"{statistics.machines:,}, of which {statistics.machines_that_failed:,} failed",
        ),
        ("Span", _time(statistics.span_s)),
        ("Failures a day", _number(statistics.failures_per_day)),
        (
            "Failures a machine-day",
            _NOT_GIVEN
            if statistics.failures_per_machine_day is None
            else f"{statistics.failures_per_machine_day:.3%}",
        ),
        ("MTBF of the cluster", _time(statistics.mtbf_s)),
        ("At one instant", _groups(statistics)),
        (
            "Machines down",
            f"{_number(statistics.mean_machines_down)} on average, "
            f"{_number(statistics.max_machines_down)} at most",
        ),
        (
            "Repair",
            f"median {_time(repair.median)}, mean {_time(repair.mean)}"
            + (f" ({repair.unknown:,} not given)" if repair.unknown else ""),
        ),
        (
            "Gaps between failures",
            _NOT_GIVEN
            if gaps.weibull_shape is None
            else f"Weibull shape {gaps.weibull_shape:.3f} (95 %: {gaps.ci95_low:.3f} to "
            f"{gaps.ci95_high:.3f}), cv {gaps.cv:.2f}",
        ),
        ("Most failing machines", failing or _NOT_GIVEN),
    ]
    rows += [(key, value) for key, value in (("Source", trace.source), ("Licence", trace.licence))]
    rows += [(key.capitalize(), value) for key, value in trace.notes if key in ("edits", "seed")]
    return [(what, value) for what, value in rows if value]


def _groups(statistics: TraceStatistics) -> str:
    groups, share = statistics.simultaneous_groups, statistics.simultaneous_share
    within = format_seconds(statistics.within_s)
    if not groups or share is None:
        return f"never several within {within}"
    count = "1 group" if len(groups) == 1 else f"{len(groups):,} groups"
    told = f"{share:.1%} of failures, in {count} of up to {groups[0]} within {within}"
    if statistics.domain_failures:
        told += f"; {statistics.domain_failures:,} of them of one failure domain"
    return told


def _time(seconds: float | None) -> str:
    return _NOT_GIVEN if seconds is None else format_seconds(seconds)


def _number(value: float | None) -> str:
    return _NOT_GIVEN if value is None else f"{value:.3g}"


def print_catalog() -> None:
    """Print the public data sets on standard output."""
    console = Console(highlight=False, markup=False)
    table = Table(title="Data sets", title_justify="left", show_lines=True)
    table.add_column("Name", no_wrap=True)
    table.add_column("What", overflow="fold")
    table.add_column("Terms", overflow="fold")
    table.add_column("Traces", overflow="fold")
    for data in catalog():
        names = ", ".join(trace.name for trace in data.traces[:4])
        more = len(data.traces) - 4
        table.add_row(
            data.name,
            f"{data.title}; {data.citation}",
            data.licence,
            names + (f" and {more} more" if more > 0 else ""),
        )
    console.print(table)


def print_presets() -> None:
    """Print the published rates on standard output."""
    console = Console(highlight=False, markup=False)
    table = Table(title="Presets", title_justify="left", show_lines=True)
    table.add_column("Name", no_wrap=True)
    table.add_column("Machines", justify="right")
    table.add_column("Days", justify="right")
    table.add_column("A machine\na day", justify="right")
    table.add_column("Source", overflow="fold")
    for preset in PRESETS.values():
        table.add_row(
            preset.name,
            f"{preset.machines:,}",
            f"{preset.days:g}",
            f"{preset.rate_per_s * _DAY_S:.3%}",
            f"{preset.source} ({preset.confidence}). {preset.remark[:1].upper()}"
            f"{preset.remark[1:]}.",
        )
    console.print(table)
