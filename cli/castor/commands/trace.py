"""`castor trace`: bring in, make, describe, draw and edit failure traces."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer

from castor.commands.overwriting import Overwrite
from castor.commands.trace_files import check_output, exact_seconds, naming, read_any, write
from castor.commands.trace_generate import generate
from castor_configs.errors import InputError
from castor_configs.plugins import and_plugins

trace_app = typer.Typer(
    help="Bring in, make, describe, draw and edit failure traces.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)

TraceName = Annotated[
    str,
    typer.Argument(
        metavar="TRACE",
        help="A trace file, a published file, or a data set such as infinitehbd or lanl-20.",
        show_default=False,
    ),
]
OutputOption = Annotated[
    str,
    typer.Option(
        "--output", "-o", metavar="FILE", help="Where to write the trace; - is standard output."
    ),
]
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="Format of a published file that goes by another name: lanl, titan, infinitehbd, "
        f"bamboo, bamboo-counts, philly, acme{and_plugins('importers')}.",
        metavar="FORMAT",
    ),
]
SystemOption = Annotated[
    int | None, typer.Option(help="Which of LANL's systems (default 20).", metavar="N")
]
YearOption = Annotated[
    int | None, typer.Option(help="One calendar year of Titan's GPUs.", metavar="YEAR")
]
SkipBadOption = Annotated[
    bool, typer.Option("--skip-bad", help="Leave malformed rows out, and say how many.")
]
SeedOption = Annotated[int, typer.Option(help="Seed of the random choices.", min=0, metavar="N")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object instead of the tables.")
]

trace_app.command("generate")(generate)


@trace_app.command("import")
def import_(
    name: TraceName,
    output: OutputOption = "-",
    overwrite: Overwrite = False,
    form: FormatOption = None,
    system: SystemOption = None,
    year: YearOption = None,
    skip_bad: SkipBadOption = False,
) -> None:
    """Turn a published data set into a trace file.

    Example: castor trace import lanl-20 -o lanl20.csv
    """
    check_output(output, [name], overwrite=overwrite)
    write(read_any(name, form, system, year, skip_bad).trace, output)


@trace_app.command()
def fetch(
    name: Annotated[
        str | None,
        typer.Argument(help="A data set, such as infinitehbd or lanl-20.", show_default=False),
    ] = None,
    as_list: Annotated[
        bool, typer.Option("--list", help="List the data sets, their terms and their traces.")
    ] = False,
    folder: Annotated[
        Path | None,
        typer.Option(help="Where to keep data sets (default: the cache).", metavar="DIR"),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(help="A mirror of the public repositories.", metavar="URL"),
    ] = None,
) -> None:
    """Download a data set from its public home and check that it is the right one.

    What this computer has already (in CASTOR_TRACES, or fetched before) is not downloaded again.
    The path of the file goes to standard output.

    Example: castor trace fetch infinitehbd
    """
    from castor_traces import fetch as fetching

    if as_list:
        from castor.commands.trace_tables import print_catalog

        print_catalog()
        return
    if name is None:
        raise InputError("name a data set; `castor trace fetch --list` shows them", key="NAME")
    if folder is None:
        here = _files_here(name)
        if here:
            typer.echo(f"{name} is here already", err=True)
            typer.echo("\n".join(str(path) for path in here))
            return
    options = {} if base_url is None else {"base_url": base_url}
    path = fetching.fetch(name, folder=folder, **options)
    typer.echo(f"{name} is fetched and its SHA-256 is right", err=True)
    typer.echo(str(path))


@trace_app.command()
def stats(
    name: TraceName,
    as_json: JsonOption = False,
    form: FormatOption = None,
    system: SystemOption = None,
    year: YearOption = None,
    skip_bad: SkipBadOption = False,
    within: Annotated[
        str, typer.Option(metavar="TIME", help="Failures that begin within it are joint.")
    ] = "1min",
) -> None:
    """Describe a trace: rates, joint failures, repairs, gaps and the most failing machines.

    Example: castor trace stats infinitehbd --within 1s
    """
    from castor_traces.statistics import trace_statistics

    imported = read_any(name, form, system, year, skip_bad)
    statistics = trace_statistics(
        imported.trace, int(exact_seconds(within, "--within") * 1_000_000_000)
    )
    if as_json:
        typer.echo(json.dumps(statistics.to_json(), indent=2, allow_nan=False))
        return
    from castor.commands.trace_tables import print_statistics

    print_statistics(statistics, imported.trace)


@trace_app.command()
def plot(
    name: TraceName,
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Name of the pictures; .png and .pdf are added."
        ),
    ],
    overwrite: Overwrite = False,
    form: FormatOption = None,
    system: SystemOption = None,
    year: YearOption = None,
    skip_bad: SkipBadOption = False,
) -> None:
    """Draw a trace as PNG and PDF: failures, machines down, gaps and repair times.

    Example: castor trace plot infinitehbd -o out/infinitehbd
    """
    from castor_configs.atomic import output_file
    from castor_traces.plot import plot_trace

    stem = Path(output)
    if stem.suffix in (".png", ".pdf"):
        stem = stem.with_suffix("")
    if not stem.name:
        raise InputError("expected the name of a picture, not a folder", key="--output")
    for suffix in (".png", ".pdf"):
        output_file(f"{stem}{suffix}", key="--output", overwrite=overwrite)
    trace = read_any(name, form, system, year, skip_bad).trace
    try:
        paths = plot_trace(trace, stem)
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", file=output) from error
    for path in paths:
        typer.echo(str(path))


@trace_app.command("slice")
def slice_(
    name: TraceName,
    start: Annotated[
        str, typer.Option("--from", help="Start, from the trace's own: 30d, 12h.", metavar="TIME")
    ] = "0s",
    end: Annotated[
        str | None,
        typer.Option("--to", help="End (default: the trace's own).", metavar="TIME"),
    ] = None,
    output: OutputOption = "-",
    overwrite: Overwrite = False,
) -> None:
    """Keep the failures that begin between two times.

    Example: castor trace slice lanl-20 --from 200d --to 565d -o year.csv
    """
    check_output(output, [name], overwrite=overwrite)
    from castor_traces import edit

    trace = read_any(name).trace
    start_s = exact_seconds(start, "--from")
    end_s = Fraction(trace.span_ns, 1_000_000_000) if end is None else exact_seconds(end, "--to")
    with naming("--from, --to"):
        write(edit.slice_trace(trace, start_s, end_s), output)


@trace_app.command()
def rescale(
    name: TraceName,
    machines: Annotated[int, typer.Option(help="How many machines to have.", min=1, metavar="N")],
    seed: SeedOption = 0,
    output: OutputOption = "-",
    overwrite: Overwrite = False,
) -> None:
    """Change the number of machines at the same failure rate a machine.

    Fewer: a random subset. More: copies, each at another time. Joint failures stay joint.

    Example: castor trace rescale infinitehbd --machines 16 --seed 1 -o small.csv
    """
    check_output(output, [name], overwrite=overwrite)
    from castor_traces import edit

    with naming("--machines"):
        write(edit.rescale(read_any(name).trace, machines, seed), output)


@trace_app.command()
def compress(
    name: TraceName,
    factor: Annotated[
        str, typer.Option(help="By what to divide all times: 1000, 0.5.", metavar="X")
    ],
    output: OutputOption = "-",
    overwrite: Overwrite = False,
) -> None:
    """Make everything happen faster: times, repairs and the span divided by a factor.

    Example: castor trace compress infinitehbd --factor 50000 -o minutes.csv
    """
    check_output(output, [name], overwrite=overwrite)
    from castor_traces import edit

    try:
        ratio = Fraction(factor)
    except (ValueError, ZeroDivisionError):
        raise InputError(
            f"expected a number such as 1000, not {factor!r}", key="--factor"
        ) from None
    with naming("--factor"):
        write(edit.compress(read_any(name).trace, ratio), output)


@trace_app.command()
def merge(
    names: Annotated[
        list[str],
        typer.Argument(metavar="TRACE...", help="Traces of one span.", show_default=False),
    ],
    side_by_side: Annotated[
        bool,
        typer.Option(
            "--side-by-side", help="Machines of their own for each; else they are the same ones."
        ),
    ] = False,
    output: OutputOption = "-",
    overwrite: Overwrite = False,
) -> None:
    """Put the failures of several traces into one.

    Example: castor trace merge hardware.csv software.csv -o all.csv
    """
    check_output(output, names, overwrite=overwrite)
    from castor_traces import edit

    traces = [read_any(name).trace for name in names]
    with naming("TRACE"):
        write(edit.merge(traces, side_by_side=side_by_side), output)


@trace_app.command()
def shuffle(
    name: TraceName,
    seed: SeedOption = 0,
    output: OutputOption = "-",
    overwrite: Overwrite = False,
) -> None:
    """Renumber the machines at random: published numbers often follow the first failure.

    Example: castor trace shuffle infinitehbd --seed 1 -o shuffled.csv
    """
    check_output(output, [name], overwrite=overwrite)
    from castor_traces import edit

    write(edit.shuffle_machines(read_any(name).trace, seed), output)


def _files_here(name: str) -> list[Path]:
    """Return the files of a data set or named trace if all are here and right, else none."""
    from castor_traces.catalog import find
    from castor_traces.fetch import check_published, locate

    data, trace = find(name)
    wanted = data.traces if name == data.name else (trace,)
    files: dict[Path, None] = {}
    for part in wanted:
        path = locate(part.name)
        if path is None:
            return []
        if path not in files:
            check_published(path, part.name)
            files[path] = None
    return list(files)
