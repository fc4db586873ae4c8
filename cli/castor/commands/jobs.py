"""castor jobs: all jobs of a store."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from castor.commands.asking import StoreUrl, ask

if TYPE_CHECKING:
    from castor_runtime.stores import EtcdStore

_STYLES = {
    "training": "green",
    "degraded": "yellow",
    "gathering": "yellow",
    "failed": "red",
    "unreadable": "red",
    "off": "red",
}


def jobs(
    *,
    store: StoreUrl,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """List all jobs of a store: state, iteration, machines alive, standbys, age, last failure.

    Example: castor jobs --store etcd://10.0.0.1:2379
    """
    from castor_runtime.launcher.train_options import check_store

    check_store(store, embedded=False)
    found = asyncio.run(ask(store, _read))
    if as_json:
        for one in found:
            typer.echo(json.dumps(one))
        return
    if not found:
        typer.echo("the store has no job", err=True)
        return
    Console(highlight=False, markup=False).print(table(found))


async def _read(store: EtcdStore) -> list[dict[str, Any]]:
    from castor_runtime.launcher.all_jobs import job_document, read_jobs

    return [job_document(view) for view in await read_jobs(store)]


def table(found: list[dict[str, Any]]) -> Any:
    """Return the jobs as a table; the last failure takes what room there is."""
    from rich.table import Table

    from castor_configs.readable import format_seconds

    shown = Table(show_edge=False, pad_edge=False)
    for heading in ("job", "state"):
        shown.add_column(heading, no_wrap=True)
    for heading in ("iteration", "alive", "standbys", "age"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("last failure", overflow="ellipsis", no_wrap=True)
    for one in found:
        failed = one["reason"] if one["state"] == "failed" else one["last_failure"]
        shown.add_row(
            one["job"],
            Text(one["state"], style=_STYLES.get(one["state"], "")),
            str(one["iteration"]),
            f"{one['alive']}/{one['machines']}",
            str(one["standbys"]),
            format_seconds(round(one["age_s"])),
            failed.partition("\n")[0] or "-",
        )
    return shown
