"""castor schedule: which chunk of a checkpoint travels in which idle timespan."""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from castor_configs.errors import InputError
from castor_configs.plugins import and_plugins
from castor_configs.schemes import SCHEMES
from castor_configs.written_quantities import written_bytes
from castor_policy import defaults
from castor_policy.chunk_schedule import Link

if TYPE_CHECKING:
    from collections.abc import Callable

    from castor_policy.chunk_schedule import Schedule

NS_PER_S = 10**9
Number = TypeVar("Number", int, float)


def schedule(
    idle_ms: Annotated[
        str,
        typer.Option("--idle-ms", metavar="LIST", help="Idle spans in order: 40,10,5,80."),
    ],
    checkpoint: Annotated[
        str, typer.Option(metavar="SIZE", help="Size of one replica: 1GB, 9.4GB.")
    ],
    bandwidth: Annotated[str, typer.Option(metavar="RATE", help="B of the network: 100Gbps.")],
    replicas: Annotated[
        int, typer.Option(min=1, help="m, the machine's own copy included; m - 1 travel.")
    ] = 2,
    alpha_us: Annotated[
        str, typer.Option("--alpha-us", metavar="US", help="Start-up time of a transfer, in us.")
    ] = "100",
    buffer: Annotated[
        str, typer.Option(metavar="SIZE", help="R, GPU memory for received chunks.")
    ] = written_bytes(defaults.GEMINI_BUFFER_BYTES),
    sub_buffers: Annotated[
        int, typer.Option(min=1, help="p, sub-buffers of R/p.")
    ] = defaults.SUB_BUFFERS,
    mu: Annotated[str, typer.Option(metavar="SHARE", help="Share of a span to use.")] = str(
        defaults.GEMINI_MU
    ),
    copy_bandwidth: Annotated[
        str | None,
        typer.Option(
            "--copy-bandwidth", metavar="RATE", help="GPU to CPU; by default that of the network."
        ),
    ] = None,
    scheme: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=f"How to send: blocking, naive, unpipelined, pipelined{and_plugins('schemes')}.",
        ),
    ] = "pipelined",
    as_json: Annotated[bool, typer.Option("--json", help="Print the schedule as JSON.")] = False,
) -> None:
    """Fill idle timespans with a checkpoint's chunks (Algorithm 2, corrected).

    The last span has no end: what fits nowhere else goes there, and the update waits for it.

    Example: castor schedule --idle-ms 40,10,5,80 --checkpoint 1GB --bandwidth 100Gbps
    """
    from castor_configs.quantities import parse_bps, parse_bytes, parse_fraction

    spans_ns = [_nanoseconds(text, "ms", "--idle-ms") for text in idle_ms.split(",")]
    link = _link(alpha_us, _quantity(bandwidth, "--bandwidth", parse_bps), "--bandwidth")
    copy_link = None
    if copy_bandwidth is not None:
        bps = _quantity(copy_bandwidth, "--copy-bandwidth", parse_bps)
        copy_link = _link("0", bps, "--copy-bandwidth")
    size_bytes = _quantity(checkpoint, "--checkpoint", parse_bytes)
    buffer_bytes = _quantity(buffer, "--buffer", parse_bytes)
    share = Fraction(repr(_quantity(mu, "--mu", parse_fraction)))

    chosen = SCHEMES.choose(scheme, "--scheme")

    def filled(spans: list[int]) -> Schedule:
        return chosen(
            spans, size_bytes, replicas - 1, link, buffer_bytes, sub_buffers, share, copy_link
        )

    try:
        document = schedule_document(
            filled(spans_ns), spans_ns, filled([*spans_ns, 0]), mu=share, replicas=replicas
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    if as_json:
        typer.echo(json.dumps(document, indent=2, allow_nan=False))
    else:
        _print(document)


def schedule_document(
    found: Schedule,
    spans_ns: list[int],
    with_end: Schedule,
    *,
    mu: Fraction,
    replicas: int,
) -> dict[str, Any]:
    """Return the schedule as `--json` prints it.

    Args:
        found: the schedule.
        spans_ns: the idle spans.
        with_end: the same with a further span of no length, which ends the last one: what is in
            it has spilled.
        mu: share of a span that is used.
        replicas: m.
    """
    spilled = with_end.spans[-1]
    return {
        "scheme": found.scheme,
        "replicas": replicas,
        "mu": float(mu),
        "upfront": {"chunks": _chunks(found.upfront), "busy_s": found.upfront_ns / NS_PER_S},
        "spans": [
            {
                "idle_s": idle_ns / NS_PER_S,
                "busy_s": span.busy_ns / NS_PER_S,
                "bytes": sum(chunk.size_bytes for chunk in span.chunks),
                "chunks": _chunks(span.chunks),
            }
            for idle_ns, span in zip(spans_ns, found.spans, strict=True)
        ],
        "spill": {
            "bytes": sum(chunk.size_bytes for chunk in spilled.chunks),
            "busy_s": found.spill_ns / NS_PER_S,
        },
        "update_delay_s": found.update_delay_ns / NS_PER_S,
        "iteration_delay_s": found.iteration_delay_ns / NS_PER_S,
        "buffer_bytes": found.buffer_bytes,
        "fits": found.iteration_delay_ns == 0,
    }


def _chunks(chunks: tuple[Any, ...]) -> list[dict[str, int]]:
    return [{"bytes": chunk.size_bytes, "replica": chunk.replica} for chunk in chunks]


def _print(document: dict[str, Any]) -> None:
    from castor_configs.readable import format_bytes, format_seconds

    table = Table(title=f"Schedule, {document['scheme']}")
    for heading in ("Span", "Idle", "Chunks", "Bytes", "Busy"):
        table.add_column(heading, justify="right")
    upfront = document["upfront"]
    if upfront["chunks"]:
        size = sum(chunk["bytes"] for chunk in upfront["chunks"])
        count = str(len(upfront["chunks"]))
        table.add_row("start", "-", count, format_bytes(size), format_seconds(upfront["busy_s"]))
    for number, span in enumerate(document["spans"], start=1):
        table.add_row(
            str(number),
            format_seconds(span["idle_s"]),
            str(len(span["chunks"])),
            format_bytes(span["bytes"]),
            format_seconds(span["busy_s"]),
        )
    console = Console(highlight=False)
    console.print(table)
    spill = document["spill"]
    if spill["bytes"]:
        console.print(
            f"{format_bytes(spill['bytes'])} fit no span: the last one takes "
            f"{format_seconds(spill['busy_s'])} more than meant for it, and the update waits "
            f"{format_seconds(document['update_delay_s'])}."
        )
    elif document["fits"]:
        console.print("Everything fits: the checkpoint costs training nothing.")
    else:
        console.print(f"Training waits {format_seconds(document['iteration_delay_s'])}.")
    console.print(f"GPU memory for received chunks: {format_bytes(document['buffer_bytes'])}.")


def _quantity(text: str, option: str, parse: Callable[[object], Number]) -> Number:
    try:
        return parse(text)
    except ValueError as error:
        raise InputError(str(error), key=option) from error


def _link(alpha_us: str, bandwidth_bps: int, option: str) -> Link:
    try:
        return Link(_nanoseconds(alpha_us, "us", "--alpha-us"), bandwidth_bps)
    except ValueError as error:
        raise InputError(str(error), key=option) from error


def _nanoseconds(text: str, unit: str, option: str) -> int:
    from castor_configs.quantities import parse_ns

    try:
        number = Decimal(text.strip())
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite():
        raise InputError(f'expected a number of {unit}, not "{text.strip()}"', key=option)
    if number < 0:
        raise InputError(f"expected 0 {unit} or more, not {text.strip()}", key=option)
    try:
        # It bounds what a number may be: 1e99999999 would never be counted out.
        return parse_ns(f"{text.strip()}{unit}")
    except ValueError as error:
        raise InputError(
            f'expected a plain number of {unit}, up to 292 years, not "{text.strip()}"', key=option
        ) from error
