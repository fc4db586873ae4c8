"""castor launch: the one line of `castor run`, on every host of a hostfile, over ssh."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from castor.commands.run_line import RunLine
from castor_configs.errors import InputError


def launch(
    *,
    hostfile: Annotated[
        Path, typer.Option(metavar="FILE", help="A line a host, as DeepSpeed has it: HOST slots=8.")
    ],
    castor: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Castor's program on the hosts; default: as here."),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=VALUE]", help="Set there; without a value, as it is here."),
    ] = None,
    ssh: Annotated[
        list[str] | None,
        typer.Option(metavar="OPTION", help="Of OpenSSH, as its -o takes it: Port=2222."),
    ] = None,
    line: RunLine,
) -> None:
    """Start `castor run` on every host of a hostfile, and follow what the hosts say.

    Options of this command come first. Each host's agent runs by itself: kill this, or answer
    Ctrl-C with d, and the job trains on; the same line again follows it. A host that cannot be
    reached is named, and the others go on. --nnodes and --nproc-per-node come from the file
    unless they are given.

    Example: castor launch --hostfile hosts --nnodes 4:5 --job gpt2 --interface eth0
    --store etcd://10.0.0.1:2379 --secret FILE train.py --lr 3e-4
    """
    from castor_runtime.deployment.hostfile import read_hostfile
    from castor_runtime.deployment.launch import Launch
    from castor_runtime.deployment.remote_start import start_script, stop_script
    from castor_runtime.deployment.run_line import completed, job_of

    if shutil.which("ssh") is None:
        raise InputError("ssh is not installed here: apt-get install openssh-client")
    hosts = read_hostfile(hostfile)
    job = job_of(line)
    words = completed(line, len(hosts.hosts), hosts.slots)
    program = castor or Path(sys.executable).with_name("castor")
    start = start_script(job, program, words, Path.cwd(), _environment(env or ()))
    options = [word for option in ssh or () for word in ("-o", option)]
    launched = Launch(job, hosts.hosts, options, start=start, stop=stop_script(job))
    raise typer.Exit(asyncio.run(launched.run()))


def _environment(given: list[str] | tuple[str, ...]) -> dict[str, str]:
    found = {}
    for one in given:
        name, has_value, value = one.partition("=")
        if not name.isidentifier():
            raise InputError(f"expected NAME=VALUE, or NAME, not {one!r}", key="--env")
        if not has_value and name not in os.environ:
            raise InputError(f"{name} is not set here", key="--env")
        found[name] = value if has_value else os.environ[name]
    return found
