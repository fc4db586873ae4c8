"""castor run: one identical line on every host, and the job is made by whichever comes first."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from castor.commands.agent_flags import agent_options, takes_agent_flags
from castor.commands.given_job import read_job, spec_of
from castor.commands.job_flags import takes_job_flags
from castor_configs.errors import InputError
from castor_configs.job import Flag

_NNODES = re.compile(r"([1-9]\d*)(?::([1-9]\d*))?")
_NOT_HERE = ("nodes", "ranks_per_node", "standby", "agents", "domains")
"""Options of a job on one machine that stands for several."""


@takes_job_flags(without=_NOT_HERE)
@takes_agent_flags
def run(
    context: typer.Context,
    script: Annotated[
        Path,
        typer.Argument(
            metavar="SCRIPT|JOB.toml",
            help="A DeepSpeed program, or a job file that names one; its options follow.",
        ),
    ],
    *,
    nnodes: Annotated[
        str,
        typer.Option(
            metavar="MIN[:MAX]", help="Hosts that train; those above MIN, up to MAX, are spares."
        ),
    ] = "",
    nproc_per_node: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Trainers on each.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the job: traffic.mu=0.8."),
    ] = None,
    **_flags: Any,
) -> None:
    """Train on many hosts: give each of them this very line, in any order.

    The first makes the job in the store, the others join it; a host that comes again finds its
    memory and its place, or waits as a spare. No host is special, and none has to stay.

    Example: castor run --nnodes 4:5 --nproc-per-node 8 --job gpt2 --interface eth0
    --store etcd://10.0.0.1:2379 --secret FILE train.py --lr 3e-4
    """
    from castor_runtime.launcher.train_options import EMBEDDED

    flags = [Flag(("agents",), "castor run", "external")]
    if nnodes:
        flags.append(Flag(("nodes",), "--nnodes", host_counts(nnodes)[0]))
    if nproc_per_node is not None:
        flags.append(Flag(("ranks_per_node",), "--nproc-per-node", nproc_per_node))
    given, job = read_job(context, script, changes, flags)
    if not job.launch.job:
        raise InputError("name the job, by the same name on every host", key="--job")
    if job.launch.store == EMBEDDED:
        raise InputError("hosts meet in a store: name it as etcd://HOST:PORT", key="--store")
    if job.launch.placement == "domains":
        raise InputError(
            "goes with castor train --agents external, which asks the agents for theirs first; "
            "here hosts that say their --domain are seated so that copies are apart",
            key="--placement",
        )
    spec = spec_of(given, job)
    options = agent_options(spec.job, job.launch.store, context.params)
    from castor_runtime.agent.main import run_agent

    raise typer.Exit(run_agent(options, spec))


def host_counts(nnodes: str) -> tuple[int, int]:
    """Return MIN and MAX of MIN:MAX.

    Raises:
        InputError: it says something else.
    """
    match = _NNODES.fullmatch(nnodes)
    if match is None or (match[2] is not None and int(match[2]) < int(match[1])):
        raise InputError(f"expected MIN or MIN:MAX, such as 4:5, not {nnodes!r}", key="--nnodes")
    return int(match[1]), int(match[2] or match[1])
