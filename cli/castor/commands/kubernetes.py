"""castor kubernetes: the one line of `castor run`, as manifests of Kubernetes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from castor.commands.reading import read_option
from castor.commands.run_line import RunLine, counts_of
from castor_configs.errors import InputError


def kubernetes(
    *,
    image: Annotated[
        str, typer.Option(metavar="IMAGE", help="That has Castor, the script and its data.")
    ],
    shared_memory: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            help="Of a pod, for checkpoints: 2 · copies · 12 bytes · parameters / machines.",
        ),
    ],
    memory: Annotated[
        str, typer.Option(metavar="SIZE", help="Of a pod, for everything else.")
    ] = "16GiB",
    gpus: Annotated[int, typer.Option(min=0, metavar="N", help="Of each pod.")] = 0,
    castor: Annotated[
        str, typer.Option(metavar="PATH", help="Castor's program in the image.")
    ] = "castor",
    line: RunLine,
) -> None:
    """Print a StatefulSet of pods with an agent each, and what it needs, for `kubectl apply -f -`.

    Options of this command come first. The file of --secret is read here and goes into a Secret;
    name and address are the pod's own. A pod that is lost comes back as a spare.

    Example: castor kubernetes --image registry.lab/train:7 --shared-memory 60GiB --gpus 8
    --nnodes 4:5 --nproc-per-node 8 --job gpt2 --store etcd://etcd:2379 --secret FILE
    train.py --lr 3e-4
    """
    from castor_configs.quantities import parse_bytes
    from castor_runtime.deployment.kubernetes import Wanted, manifests
    from castor_runtime.deployment.run_line import job_of, value_of

    shared_bytes = read_option(parse_bytes, shared_memory, "--shared-memory")
    memory_bytes = read_option(parse_bytes, memory, "--memory")
    train, total = counts_of(line, "pods")
    if not (secret := value_of(line, "--secret")):
        raise InputError("name the file with the job's secret", key="--secret")
    replicas = value_of(line, "--replicas") or "2"
    if not replicas.isdecimal():
        raise InputError(f"expected a number, not {replicas!r}", key="--replicas")
    wanted = Wanted(
        job=job_of(line),
        image=image,
        castor=castor,
        words=line,
        train=train,
        total=total,
        secret=Path(secret).read_bytes(),
        shared_bytes=shared_bytes,
        memory_bytes=memory_bytes,
        gpus=gpus,
        replicas=int(replicas),
    )
    typer.echo(manifests(wanted), nl=False)
