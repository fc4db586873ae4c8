"""`castor cluster`: an emulated cluster on this machine, of network namespaces and shaped links."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from castor_configs.errors import InputError

ValueT = TypeVar("ValueT")

cluster_app = typer.Typer(
    help="Emulate a cluster on this machine: hosts, a switch, and links of a bandwidth.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)

NameOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="1 to 8 lower-case letters and digits; default: lab."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@cluster_app.command()
def up(
    nodes: Annotated[int, typer.Option(help="Hosts that train.")] = 4,
    spares: Annotated[int, typer.Option(help="Hosts that wait to replace one.")] = 1,
    bandwidth: Annotated[
        str, typer.Option(metavar="RATE", help="Of each host's link, each way.")
    ] = "1gbit",
    storage_bandwidth: Annotated[
        str, typer.Option(metavar="RATE", help="Of the storage host's link, shared by all.")
    ] = "50mbit",
    name: NameOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make hosts, a storage host and a switch as network namespaces (needs root).

    Example: castor cluster up --nodes 4 --bandwidth 1gbit --storage-bandwidth 50mbit
    """
    from castor_configs.quantities import parse_bps
    from castor_lab.emulated_cluster import layout, lifecycle

    wanted = layout.Wanted(
        name=layout.DEFAULT_NAME if name is None else name,
        nodes=nodes,
        spares=spares,
        bandwidth_bps=_parsed(parse_bps, bandwidth, "--bandwidth"),
        storage_bandwidth_bps=_parsed(parse_bps, storage_bandwidth, "--storage-bandwidth"),
    )
    cluster = lifecycle.up(wanted)
    _show(_document(cluster.name), as_json)
    if not as_json:
        typer.echo(f"castor train --cluster {cluster.name} --nodes {nodes} SCRIPT trains on it")


@cluster_app.command()
def down(
    name: NameOption = None,
    every: Annotated[bool, typer.Option("--all", help="Every emulated cluster here.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove an emulated cluster and what runs in it; also what a crash left of one.

    Example: castor cluster down
    """
    from castor_lab.emulated_cluster import lifecycle

    if every and name is not None:
        raise InputError("names one, and --all means every one", key="--name")
    chosen = lifecycle.names() if every else [lifecycle.the_only_one(name)]
    removed = {one: lifecycle.down(one) for one in chosen}
    if as_json:
        document = {
            one: {
                "namespaces": list(gone.namespaces),
                "links": list(gone.links),
                "processes": list(gone.processes),
            }
            for one, gone in removed.items()
        }
        typer.echo(json.dumps(document))
        return
    for one, gone in removed.items():
        if not gone.namespaces and not gone.links:
            typer.echo(f"cluster {one}: nothing is there")
            continue
        killed = f", {len(gone.processes)} processes killed" if gone.processes else ""
        typer.echo(f"cluster {one}: {len(gone.namespaces)} namespaces removed{killed}")


@cluster_app.command()
def status(name: NameOption = None, as_json: JsonOption = False) -> None:
    """Show the hosts of an emulated cluster, their links, and how many processes run there.

    Example: castor cluster status --json
    """
    from castor_lab.emulated_cluster import lifecycle

    _show(_document(lifecycle.the_only_one(name)), as_json)


def _document(name: str) -> dict[str, Any]:
    from castor_lab.emulated_cluster.lifecycle import find
    from castor_lab.emulated_cluster.links import link_state
    from castor_lab.emulated_cluster.namespaces import processes_in

    cluster = find(name)
    hosts = [*cluster.hosts, cluster.storage]
    where = list(processes_in(*(host.namespace for host in hosts)).values())
    rows = []
    for host in hosts:
        link = link_state(host)
        rows.append(
            {
                "host": host.name,
                "address": host.address,
                "namespace": host.namespace,
                "link": "up" if link.up else "cut",
                "send_bps": link.send_bps,
                "receive_bps": link.receive_bps,
                "built_bps": link.built_bps,
                "processes": where.count(host.namespace),
            }
        )
    return {"name": cluster.name, "gateway": cluster.gateway, "hosts": rows}


def _show(document: dict[str, Any], as_json: bool) -> None:
    from castor_configs.readable import format_bps

    if as_json:
        typer.echo(json.dumps(document))
        return
    table = Table(show_edge=False, pad_edge=False)
    for heading in ("host", "address", "link"):
        table.add_column(heading, no_wrap=True)
    for heading in ("sends", "receives", "processes"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in document["hosts"]:
        slow = min(row["send_bps"], row["receive_bps"]) < row["built_bps"]
        table.add_row(
            row["host"],
            row["address"],
            "slow" if slow and row["link"] == "up" else row["link"],
            format_bps(row["send_bps"]),
            format_bps(row["receive_bps"]),
            str(row["processes"]),
            style="yellow" if slow or row["link"] == "cut" else "",
        )
    console = Console(highlight=False, markup=False)
    console.print(f"cluster {document['name']}, gateway {document['gateway']}")
    console.print(table)


def _parsed(parser: Callable[[object], ValueT], text: str, option: str) -> ValueT:
    try:
        return parser(text)
    except ValueError as error:
        raise InputError(str(error), key=option) from error
