"""castor status: how a job is doing."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from castor.commands.reach import NOBODY, Reach, given_options, reaches_a_job
from castor_configs.errors import InputError

WATCH_EVERY_S = 1.0
_LINE_LENGTH = 200
SILENT_READS = 5
"""So often in a row a run's store may not answer: its own one goes before its result comes."""


@reaches_a_job
def status(
    context: typer.Context,
    run: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run folder; default: newest under out/.")
    ] = None,
    *,
    job: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Or any job, by its name and --store; with --secret or "
            "certificates its agents are asked, too.",
        ),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Keep up to date until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    **_flags: Any,
) -> None:
    """Show a job's machines, leases, root, checkpoints by shard and holder, and recoveries.

    Example: castor status --watch
    """
    from castor_runtime.launcher.run_folder import RunFolder, newest_run

    given = context.params
    if job is None and "store" in given_options(context):
        raise InputError("--store and --job go together", key="--job")
    folder: RunFolder | None = None
    if job is not None:
        reach = Reach.of(job, given, asks=False)
    else:
        folder = RunFolder(run) if run is not None else newest_run()
        record = folder.run()
        if _has_ended(folder):
            _print_ended(folder, as_json)
            return
        reach = Reach.of(record.job, {**given, **NOBODY, "store": record.store}, asks=False)
    if not watch:
        _print(_document(reach, folder), as_json)
        return
    with contextlib.suppress(KeyboardInterrupt):
        _watch(reach, folder, as_json)


def _watch(reach: Reach, folder: Any, as_json: bool) -> None:
    console = Console(highlight=False, markup=False)
    with contextlib.ExitStack() as stack:
        live = None
        if not as_json and console.is_terminal:
            live = stack.enter_context(Live(console=console, auto_refresh=False))
        silent = 0
        while folder is None or not _has_ended(folder):
            try:
                document = _document(reach, folder)
            except InputError:
                silent += 1
                if folder is None or silent > SILENT_READS:
                    raise
            else:
                silent = 0
                if live is not None:
                    live.update(_shown(document), refresh=True)
                else:
                    _print(document, as_json)
                # While its launcher lives, its result is still to come.
                over = document["phase"] in ("finished", "failed", "stopped")
                if over and (folder is None or not folder.is_live()):
                    return
            time.sleep(WATCH_EVERY_S)
    _print_ended(folder, as_json)


def _has_ended(folder: Any) -> bool:
    return bool(folder.result_file.exists() and not folder.is_live())


def _document(reach: Reach, folder: Any) -> dict[str, Any]:
    from castor_runtime.launcher.accounts import read_accounts
    from castor_runtime.launcher.status import status_document
    from castor_runtime.launcher.told_result import told_result

    async def read(store: Any, view: Any) -> dict[str, Any]:
        if folder is not None:  # it tells all that the agents would
            return status_document(view, folder, await store.state())
        told = await read_accounts(store, view, reach.credentials)
        document = status_document(view, None, await store.state(), told)
        over = view.plan is not None and view.plan.is_over
        return document | {"result": told_result(view, told).to_json() if over else None}

    return reach.run(read)


def _print(document: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(document, allow_nan=False))
        return
    console = Console(highlight=False, markup=False)
    console.print(_shown(document))
    if result := document.get("result"):
        from castor_records.result import Result
        from castor_runtime.launcher.screen import print_summary

        print_summary(console, Result.of_json(result))


def _print_ended(folder: Any, as_json: bool) -> None:
    from castor_runtime.launcher.screen import print_summary

    if as_json:
        text = folder.result_file.read_text(encoding="utf-8")
        typer.echo(json.dumps(json.loads(text)))
    else:
        print_summary(Console(highlight=False, markup=False), folder.result())


def _shown(document: dict[str, Any]) -> Group:
    from castor_configs.readable import format_bytes

    redundancy = "DEGRADED: replicas are missing" if document["degraded"] else "all replicas whole"
    persistent = document["persistent"]
    head = Text(
        f"job {document['job']}: {document['phase']}, generation {document['generation']}, "
        f"iteration {document['iteration']}, complete in memory {document['complete_iteration']}, "
        f"in storage {persistent[-1] if persistent else 'none'}\n"
        f"root {document['root'] or 'none'}, term {document['term']}; {redundancy}; "
        f"{len(document['recoveries'])} recoveries so far"
        + "".join(f"\n{trouble}" for trouble in document["store"]["troubles"]),
        style="yellow" if document["degraded"] else "",
    )
    for agent, reason in document["unreached"].items():
        head.append(f"\n{agent} cannot be asked: {reason}", style="yellow")
    for agent, cause in document["persist_failures"].items():
        head.append(f"\nNOT PERSISTED by {agent}: {cause}", style="yellow")
    if document["kept_memory"]:
        reason = document["reason"]
        head.append(f"\ngave up: {reason}; memory is kept: {document['kept_memory']}", style="red")
    table = Table(show_edge=False, pad_edge=False)
    shown = [*document["machines"], *document["standbys"]]
    # Where no agent said what its machine fails with there is nothing to show.
    domains = any(one["domain"] for one in shown)
    for heading in ("machine", "agent", *(["domain"] if domains else []), "lease", "state"):
        table.add_column(heading)
    for heading in ("iteration", "memory", "holds shard: iteration"):
        table.add_column(heading, justify="right")
    for one in shown:
        machine, memory = one["machine"], one["memory_bytes"]
        held = [
            f"{shard['shard']}: {shard['holders'][str(machine)]}"
            for shard in document["shards"]
            if str(machine) in shard["holders"]
        ]
        table.add_row(
            "-" if machine is None else str(machine),
            one["agent"] or "-",
            *([one["domain"] or "-"] if domains else []),
            one["lease"],
            _state(one),
            str(one["iteration"]),
            "-" if memory is None else format_bytes(memory),
            ", ".join(held),
        )
    return Group(head, table, *(Text(line, style="yellow") for line in why(document)))


def _state(one: dict[str, Any]) -> str:
    if one.get("set_aside"):
        return "set aside"
    return "standby" if one["machine"] is None and one["state"] == "idle" else str(one["state"])


def why(document: dict[str, Any]) -> list[str]:
    """Return what failed of late, and which machines are set aside for it."""
    lines = [f"waits: {document['waits_for']}"] if document["waits_for"] else []
    lines += [
        f"a machine is asked for ({one['request']}): {one['progress']}"
        for one in document["machines_asked_for"]
    ]
    lines += [
        f"two copies of shard {shard} are in one failure domain, {domain}"
        for shard, domain in document["copies_together"].items()
    ]
    lines += [f"refused: {one['agent']}: {one['reason']}" for one in document["refused"]]
    last = document["last_failure"]
    if last is not None:
        named = "; ".join(f"machine {one['machine']}: {one['cause']}" for one in last["culprits"])
        lines.append(f"last failure: {named or 'what failed is not known'}")
        lines += [f"  seen beside it: {seen}" for seen in last["seen"]]
    if document["attempts"]:
        lines.append(f"{document['attempts']} attempts in a row completed no iteration")
    lines += [
        f"{one['agent']} is set aside until its agent is started again: {one['set_aside']}"
        for one in document["standbys"]
        if one["set_aside"]
    ]
    lines += [
        f"{agent} failed {found['times']} times in the last hour, at last: {found['last']}"
        for agent, found in sorted(document["failures"].items())
        if found["times"] > 1
    ]
    return [line[:_LINE_LENGTH] for line in lines]
