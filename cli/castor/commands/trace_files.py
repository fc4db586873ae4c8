"""How the trace commands read a trace by name or path, and write one to a file or to stdout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from castor_configs.errors import InputError

if TYPE_CHECKING:
    from castor_traces.importers import Imported
    from castor_traces.trace import Trace

STANDARD_OUTPUT = "-"


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Turn a ValueError of the block into an `InputError` that names the option at fault."""
    try:
        yield
    except ValueError as error:
        raise InputError(str(error), key=key) from error


def read_any(
    name: str,
    form: str | None = None,
    system: int | None = None,
    year: int | None = None,
    skip_bad: bool = False,
) -> Imported:
    """Return a trace by its name or path; rows left out are told on standard error.

    Raises:
        InputError: there is no such trace, or a row of it is malformed.
    """
    from castor_traces.catalog import is_known
    from castor_traces.library import import_file, load_any

    if Path(name).suffix and not is_known(name) and not Path(name).exists():
        raise InputError("there is no such file", file=name)

    given = {"system": system, "year": year}
    options: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if form is None:
        imported = load_any(name, skip_bad=skip_bad, **options)
    else:
        imported = import_file(name, form, skip_bad=skip_bad, **options)
    if skip_bad:
        for bad in imported.bad_rows:
            typer.echo(f"{name}:{bad.line}: left out: {bad.reason}", err=True)
        left_out = len(imported.bad_rows)
        typer.echo(f"{imported.rows_read} rows read, {left_out} left out", err=True)
    return imported


def check_output(output: str, reads: Sequence[str], *, overwrite: bool) -> None:
    """Find out before the work whether a trace may be written.

    Raises:
        InputError: it would replace a file that castor did not write, or that it reads.
    """
    from castor_configs.atomic import output_file

    if output != STANDARD_OUTPUT:
        output_file(output, key="--output", overwrite=overwrite, reads=reads)


def write(trace: Trace, output: str) -> None:
    """Write a trace to a file, whole or not at all, or to standard output for "-".

    Raises:
        InputError: the file cannot be written.
    """
    from castor_configs.readable import format_seconds
    from castor_traces.trace import NS_PER_S
    from castor_traces.write import format_trace, write_trace

    if output == STANDARD_OUTPUT:
        typer.echo(format_trace(trace), nl=False)
        return
    try:
        write_trace(trace, output)
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", file=output) from error
    typer.echo(
        f"{output}: {len(trace.failures):,} failures of {trace.machines:,} machines in "
        f"{format_seconds(trace.span_ns / NS_PER_S)}",
        err=True,
    )


def exact_seconds(text: str, option: str) -> Fraction:
    """Return a time such as "30d" in seconds, exact to the nanosecond.

    Raises:
        InputError: it is no time.
    """
    from castor_configs.quantities import parse_ns

    with naming(option):
        return Fraction(parse_ns(text), 1_000_000_000)
