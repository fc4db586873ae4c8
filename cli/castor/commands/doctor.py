"""castor doctor: what would keep this host from taking part in a job."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from castor.commands.agent_flags import takes_agent_flags
from castor.commands.asking import StoreUrl, ask
from castor.commands.reading import read_option

if TYPE_CHECKING:
    from castor_runtime.doctor.finding import Finding
    from castor_runtime.stores import EtcdStore
    from castor_runtime.transport import Credentials

_MARKS = {"good": "green", "note": "yellow", "bad": "red"}


@takes_agent_flags
def doctor(
    context: typer.Context,
    script: Annotated[
        Path | None, typer.Argument(metavar="[SCRIPT]", help="The training program.")
    ] = None,
    *,
    store: StoreUrl = "",
    job: Annotated[str, typer.Option(metavar="NAME", help="To be compared with.")] = "",
    nproc_per_node: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Trainers on this host.")
    ] = None,
    shared_memory: Annotated[
        str, typer.Option(metavar="SIZE", help="That checkpoints take on this host.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    **_flags: Any,
) -> None:
    """Look whether this host can take part in a job: give what `castor run` is to be given.

    Exits with 1 if something would keep it from that. What is not given is not looked at.

    Example: castor doctor --interface eth0 --ports 7000-7019 --store etcd://10.0.0.1:2379
    --job gpt2 --secret FILE --nproc-per-node 8 --shared-memory 60GiB train.py
    """
    from castor_configs.quantities import parse_bytes
    from castor_runtime.doctor import credentials, host

    given = context.params
    needed = read_option(parse_bytes, shared_memory, "--shared-memory") if shared_memory else None
    at_finding, at = host.address(given["listen"], given["interface"])
    tls = (given["tls_ca"], given["tls_certificate"], given["tls_key"])
    shown, proof = credentials.credentials(given["secret"], tls, at)
    found = [
        at_finding,
        host.ports(given["ports"], at),
        shown,
        host.shared_memory(needed),
        host.locked_memory(),
        host.clock(),
        host.gpus(nproc_per_node),
    ]
    if store:
        found += _of_store(store, job, script, proof)
    _print(found, as_json=as_json)
    raise typer.Exit(1 if any(one.health == "bad" for one in found) else 0)


def _of_store(url: str, job: str, script: Path | None, proof: Credentials | None) -> list[Finding]:
    from castor_runtime.doctor import store as examination

    found = list(examination.names(url))
    if any(one.health == "bad" for one in found):
        return found

    async def look(store: EtcdStore) -> None:
        found.append(await examination.health(store))
        if job and found[-1].health != "bad":
            found.extend(await examination.job(store, job, script, proof))

    asyncio.run(ask(url, look))
    return found


def _print(found: list[Finding], *, as_json: bool) -> None:
    if as_json:
        for one in found:
            typer.echo(json.dumps(asdict(one)))
        return
    table = Table("what", "", "found", box=None, pad_edge=False)
    for one in found:
        words = f"{one.found}\n-> {one.advice}" if one.advice else one.found
        table.add_row(one.what, Text(one.health, style=_MARKS[one.health]), Text(words))
    Console(highlight=False).print(table)
