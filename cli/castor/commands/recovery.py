"""castor recovery: where each second of an outage went, from a run's event log."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from castor.commands.overwriting import Overwrite
from castor.commands.reach import Reach, name_untold, reaches_a_job, refuse_store_alone
from castor.commands.run_logs import RunPaths, event_logs, named_or_newest
from castor_configs.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from castor_analysis.recovery.timeline import RecoveryTimeline
    from castor_policy.store import Store
    from castor_records.events.event import Entry, Event
    from castor_runtime.launcher.job_view import JobView

_SUFFIXES = (".png", ".pdf", ".svg", ".html", ".json")


@reaches_a_job
def recovery(
    context: typer.Context,
    run: RunPaths = None,
    generation: Annotated[
        int | None,
        typer.Option("--generation", "-g", metavar="G", help="The one that led to generation G."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="Draw it: .png, .pdf, .svg, .html; .json: Perfetto."
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    *,
    job: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of any job, by its name, --store and --secret."),
    ] = None,
    **_flags: Any,
) -> None:
    """Show a real recovery second by second, as a table and as a picture.

    Without --generation the first recovery of the run is told in full. A .json file holds the
    whole run as a Chrome trace, which ui.perfetto.dev opens.

    Example: castor recovery out/train-gpt2 --generation 2 -o recovery.png
    """
    from castor_analysis.recovery.timeline import choose, read_recoveries
    from castor_configs.atomic import output_file

    if out is not None and out.suffix not in _SUFFIXES:
        raise InputError(f"expected {', '.join(_SUFFIXES)}, not {out.suffix or out}", key="--out")
    refuse_store_alone(context)
    logs = [] if job is not None else event_logs(named_or_newest(run))
    if out is not None:
        output_file(out, key="--out", overwrite=overwrite, reads=logs)
    entries = _entries(logs) if job is None else _told(Reach.of(job, context.params, asks=False))
    try:
        found = read_recoveries(entries)
        chosen = choose(found, generation)
    except ValueError as error:
        if job is not None:
            raise InputError(f"job {job}: {error}", key="--job") from error
        raise InputError(str(error), file=logs[0].parent if len(logs) > 1 else logs[0]) from error
    if out is not None:
        _write(entries, chosen, out)
    if as_json:
        typer.echo(json.dumps(_document(found, chosen), allow_nan=False))
        return
    console = Console(highlight=False, markup=False)
    if len(found) > 1:
        console.print(_overview(found, chosen))
        console.print()
    _print(console, chosen)
    if out is not None:
        typer.echo(f"wrote {out}", err=True)


def _told(reach: Reach) -> list[Entry[Event]]:
    """Return what a job's agents tell; who cannot be asked is named."""
    from castor_runtime.launcher.accounts import read_accounts

    async def ask(store: Store, view: JobView) -> list[Entry[Event]]:
        accounts = await read_accounts(store, view, reach.credentials)
        name_untold(reach, view, accounts)
        return accounts.entries()

    return reach.run(ask)


def _entries(logs: Sequence[Path]) -> list[Entry[Event]]:
    from castor_records.event_log import merge

    return merge(logs)


def _write(entries: Sequence[Entry[Event]], chosen: RecoveryTimeline, out: Path) -> None:
    from castor_configs.atomic import write_text

    if out.suffix == ".json":
        from castor_analysis.pictures.run_trace import run_to_chrome_trace

        write_text(out, json.dumps(run_to_chrome_trace(entries), separators=(",", ":")) + "\n")
        return
    from castor_analysis.recovery.picture import draw_recovery

    draw_recovery(chosen, out)


def _document(found: Sequence[RecoveryTimeline], chosen: RecoveryTimeline) -> dict[str, Any]:
    from dataclasses import asdict

    from castor_analysis.recovery.moments import moments

    return {
        "recoveries": [one.recovery.to_json() for one in found],
        "generation": chosen.recovery.generation,
        "moments": [asdict(moment) for moment in moments(chosen)],
    }


def _overview(found: Sequence[RecoveryTimeline], chosen: RecoveryTimeline) -> Table:
    from castor_runtime.launcher.recovery_table import add_phases, phase_cells, plain_table

    table = plain_table("Recoveries of this run, phases in seconds")
    for heading in ("led to", "from"):
        table.add_column(heading)
    # A column that is empty everywhere only takes room.
    phases = [p for p in found[0].recovery.seconds if any(o.recovery.seconds[p] for o in found)]
    add_phases(table, phases)
    for one in found:
        recovery = one.recovery
        last = recovery.generations[-1]
        table.add_row(
            f"gen {last}{' *' if one is chosen else ''}",
            "-" if recovery.iteration is None else str(recovery.iteration),
            *phase_cells(recovery.seconds, phases),
        )
    return table


def _print(console: Console, chosen: RecoveryTimeline) -> None:
    from castor_analysis.recovery.moments import moments
    from castor_analysis.recovery.picture import headline
    from castor_runtime.launcher.recovery_table import plain_table

    table = plain_table(headline(chosen))
    for heading in ("from s", "to s"):
        table.add_column(heading, justify="right")
    table.add_column("who")
    table.add_column("what", overflow="fold")
    for moment in moments(chosen):
        until = "" if moment.until_s == moment.since_s else f"{moment.until_s:.3f}"
        table.add_row(f"{moment.since_s:.3f}", until, moment.who, moment.what)
    console.print(table)
