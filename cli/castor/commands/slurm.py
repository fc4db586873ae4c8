"""castor slurm: the one line of `castor run`, as an array of single-node tasks of Slurm."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from castor.commands.reading import read_option
from castor.commands.run_line import RunLine, counts_of
from castor_configs.errors import InputError


def slurm(
    *,
    submit: Annotated[
        bool, typer.Option("--submit", help="Hand it to sbatch in place of printing it.")
    ] = False,
    before: Annotated[
        str,
        typer.Option(metavar="TIME", help="Before a task's time is over its agent is told so."),
    ] = "2min",
    sbatch: Annotated[
        list[str] | None,
        typer.Option(metavar="OPTION", help="Of sbatch besides: --sbatch=--gres=gpu:8."),
    ] = None,
    castor: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Castor's program on the nodes; default: as here."),
    ] = None,
    line: RunLine,
) -> None:
    """Print, or submit, an array of tasks with an agent each: --nnodes says how many.

    Options of this command come first. A task whose node fails, whose time is over or whose agent
    dies goes back into the queue, and joins again as a spare; one that ends with 0, 1, 2 or 93
    does not. scancel frees the nodes' memory, too.

    Example: castor slurm --sbatch=--gres=gpu:8 --sbatch=--time=1-0 --submit --nnodes 4:5
    --nproc-per-node 8 --job gpt2 --interface eth0 --store etcd://10.0.0.1:2379 --secret FILE
    train.py --lr 3e-4
    """
    from castor_configs.quantities import parse_seconds
    from castor_runtime.deployment.run_line import job_of
    from castor_runtime.deployment.slurm import Wanted, batch_script
    from castor_runtime.deployment.slurm import submit as hand_over

    before_s = read_option(parse_seconds, before, "--before")
    if not 0 < before_s <= 65535:
        raise InputError("Slurm takes from 1 s to 65535 s", key="--before")
    _, most = counts_of(line, "tasks")
    program = castor or Path(sys.executable).with_name("castor")
    wanted = Wanted(job_of(line), most, program, line, round(before_s), tuple(sbatch or ()))
    script = batch_script(wanted)
    typer.echo(hand_over(script) if submit else script, nl=submit)
