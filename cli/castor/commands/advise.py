"""castor advise: how to run a job, and why."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from castor.commands.overwriting import Overwrite
from castor_configs.errors import InputError

if TYPE_CHECKING:
    from castor_analysis.advice.found import Advice

ValueT = TypeVar("ValueT")


def advise(
    cluster: Annotated[
        str, typer.Argument(metavar="CLUSTER", help="A cluster: p4d, opt-175b, or a TOML file.")
    ],
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model: gpt2-100b, or a TOML file.")
    ],
    *,
    trace: Annotated[
        str | None,
        typer.Option("--trace", metavar="F", help="Replay this trace, rescaled: a file or name."),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(metavar="RATE", help="Failures of a machine, as in 1.5%/day."),
    ] = None,
    hardware_share: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="Share of the failures that take the machine."),
    ] = None,
    rack_rate: Annotated[
        str | None,
        typer.Option(metavar="RATE", help="How often a rack goes down whole: 0.14%/day."),
    ] = None,
    budget_memory: Annotated[
        str,
        typer.Option(metavar="SIZE|%", help="CPU memory of a machine for checkpoints."),
    ] = "75%",
    within: Annotated[
        str, typer.Option(metavar="TIME", help="Failures of a trace within it are joint.")
    ] = "1min",
    seeds: Annotated[int, typer.Option(min=2, help="Replications of each simulation.")] = 20,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="E.g. training.iteration=60s."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write an experiment for castor simulate."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Recommend replicas, placement, storage interval and standbys.

    Says why, how well the job is expected to run, and what else was compared.

    Example: castor advise p4d gpt2-100b --rate 1.5%/day --out mine.toml
    """
    from castor_analysis.advice.advise import advise as advise_on
    from castor_analysis.advice.case import Request
    from castor_analysis.advice.document import advice_json
    from castor_analysis.advice.text import portable
    from castor_configs.atomic import output_file, write_text
    from castor_configs.dump import dump_toml
    from castor_configs.quantities import parse_bytes, parse_fraction, parse_ns, parse_rate_per_s

    if out is not None:
        output_file(out, key="--out", overwrite=overwrite, reads=_files(cluster, model, trace))
    share_given = budget_memory.strip().endswith("%")
    share = _parsed(parse_fraction, budget_memory if share_given else None, "--budget-memory")
    size = _parsed(parse_bytes, None if share_given else budget_memory, "--budget-memory")
    request = Request(
        cluster=cluster,
        model=model,
        trace=trace,
        rate_per_s=_parsed(parse_rate_per_s, rate, "--rate"),
        hardware_share=_parsed(parse_fraction, hardware_share, "--hardware-share"),
        domain_rate_per_s=_parsed(parse_rate_per_s, rack_rate, "--rack-rate"),
        memory_share=1.0 if share is None else share,
        memory_bytes=size,
        settings=tuple(settings or ()),
        seeds=seeds,
        within_ns=_parsed(parse_ns, within, "--within") or 0,
    )
    advice = advise_on(request, jobs=os.cpu_count() or 1)
    if out is not None:
        text = dump_toml(portable(advice.experiment, out))
        write_text(out, text)
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            f"wrote {out}; run it: castor simulate {out}", markup=False
        )
    if as_json:
        typer.echo(json.dumps(advice_json(advice), indent=2, allow_nan=False))
    else:
        _print(advice)


def _parsed(parser: Callable[[object], ValueT], text: str | None, option: str) -> ValueT | None:
    try:
        return None if text is None else parser(text)
    except ValueError as error:
        raise InputError(str(error), key=option) from error


def _print(advice: Advice) -> None:
    from castor_analysis.advice.text import assumptions, reasons, train_command
    from castor_configs.readable import format_seconds

    console = Console(highlight=False, markup=False)
    setup, chosen = advice.case.setup, advice.candidate
    per_day = advice.case.failing.per_s * 86_400
    facts = Table(
        title=f"{setup.model.name} on {setup.job.machines} machines of {setup.cluster.name}, "
        f"{per_day:.3g} interruptions a day",
        title_justify="left",
        show_header=False,
    )
    facts.add_column()
    facts.add_column(style="bold")
    if chosen is not None:
        facts.add_row("Replicas", f"{chosen.replicas}, {chosen.placement.kind} placement")
        every = "every iteration" if chosen.every == 1 else f"every {chosen.every} iterations"
        facts.add_row("To memory", every)
    else:
        facts.add_row("Replicas", "none: memory does not hold one")
    facts.add_row("To storage", f"every {format_seconds(advice.persist_every_s)}")
    facts.add_row("Standbys", str(advice.standbys))
    ratio = advice.ratio
    facts.add_row(
        "Effective training time", f"{ratio.mean:.4f} ({ratio.low:.4f} to {ratio.high:.4f}, 95 %)"
    )
    console.print(facts)
    command = train_command(advice)
    if command is not None:
        console.print("\n" + _in_lines(command), soft_wrap=True)
    _print_list(console, "Why", reasons(advice))
    console.print(_alternatives(advice))
    _print_list(console, "Assumed", assumptions(advice))


def _files(*names: str | None) -> list[str]:
    """Return those of the names that are files of the user's."""
    return [name for name in names if name is not None and Path(name).is_file()]


def _in_lines(words: list[str]) -> str:
    """Return a command for a shell, in lines of 78 characters at most."""
    lines = [""]
    for word in map(shlex.quote, words):
        if len(lines[-1]) + 1 + len(word) > 76:
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return " \\\n".join(lines)


def _print_list(console: Console, heading: str, lines: list[str]) -> None:
    table = Table.grid(padding=(0, 1))
    table.add_column()
    table.add_column()
    for line in lines:
        table.add_row("-", line)
    console.print(f"\n{heading}", style="bold")
    console.print(table)
    console.print()


def _alternatives(advice: Advice) -> Table:
    from castor_configs.readable import format_bytes, format_seconds

    table = Table(title="Compared, by simulation", title_justify="left")
    table.add_column("")
    table.add_column("Memory\na machine", justify="right")
    table.add_column("Storage\nevery", justify="right")
    table.add_column("Stand-\nbys", justify="right")
    table.add_column("Effective", justify="right")
    table.add_column("95 %", justify="right")
    for one in advice.alternatives:
        memory = "-"
        if one.candidate is not None:
            memory = format_bytes(one.candidate.memory_bytes)
            memory += "" if one.candidate.fits else " (!)"
        ratio = one.summary.ratio
        table.add_row(
            f"> {one.name}" if one.chosen else f"  {one.name}",
            memory,
            format_seconds(one.persist_every_s),
            str(one.standbys),
            f"{ratio.mean:.4f}",
            f"±{(ratio.high - ratio.low) / 2:.4f}",
            style="bold" if one.chosen else None,
        )
    if any(one.candidate is not None and not one.candidate.fits for one in advice.alternatives):
        table.caption = "(!) more than the memory set aside"
    return table
