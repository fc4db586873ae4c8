"""castor agent: what runs on each machine of a job."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated

import typer

from castor_configs.errors import InputError


def agent(
    *,
    store: Annotated[str, typer.Option(metavar="URL", help="etcd://HOST:PORT[,HOST:PORT]")],
    job: Annotated[str, typer.Option(metavar="NAME", help="The job to join.")],
    name: Annotated[
        str, typer.Option(help="Unique in the job; default: this machine's name.")
    ] = "",
    folder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Logs; default out/agent-JOB-NAME.")
    ] = None,
    standby: Annotated[
        bool, typer.Option("--standby", help="Fill a machine only when one is lost.")
    ] = False,
    domain: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What this machine fails with, such as its rack: copies are kept in others.",
        ),
    ] = "",
    listen: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Other agents must reach this address.")
    ] = "127.0.0.1",
    interface: Annotated[
        str,
        typer.Option(metavar="NAME", help="In its place: that of this network interface (eth0)."),
    ] = "",
    secret: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The job's secret, the same everywhere.")
    ] = None,
    tls_ca: Annotated[Path | None, typer.Option(metavar="FILE", help="All agents' CA.")] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="This agent's certificate.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="And its key.")] = None,
    allow_changed_script: Annotated[
        bool,
        typer.Option(
            "--allow-changed-script",
            help="Take part with another script than the job's; training waits until all "
            "machines have the same.",
        ),
    ] = False,
    wait: Annotated[
        str, typer.Option(metavar="TIME", help="For the job to appear in the store.")
    ] = "60s",
) -> None:
    """Run one machine of a job: its trainers, and the memory that holds checkpoints.

    Example: castor agent --store etcd://10.0.0.1:2379 --job gpt2 --listen 10.0.0.7 --secret FILE
    """
    from castor_configs.quantities import parse_seconds
    from castor_runtime.agent.options import AgentOptions
    from castor_runtime.launcher.train_options import check_job_name, check_store

    check_store(store, embedded=False)
    check_job_name(job)
    own_name = name or socket.gethostname().partition(".")[0]
    try:
        wait_s = parse_seconds(wait)
    except ValueError as error:
        raise InputError(str(error), key="--wait") from error
    if interface:
        listen = _address_of(interface)
    _check_credentials(secret, tls_ca, tls_certificate, tls_key)
    options = AgentOptions(
        name=own_name,
        job=job,
        store=store,
        folder=folder or Path("out") / f"agent-{job}-{own_name}",
        standby=standby,
        domain=domain,
        listen=listen,
        secret=secret,
        tls_ca=tls_ca,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        allow_changed_script=allow_changed_script,
        wait_s=wait_s,
    )
    from castor_runtime.agent.main import run_agent

    raise typer.Exit(run_agent(options))


def _address_of(interface: str) -> str:
    from castor_runtime.agent.rendezvous import address_of

    try:
        return address_of(interface)
    except ValueError as error:
        raise InputError(str(error), key="--interface") from error


def _check_credentials(
    secret: Path | None, ca: Path | None, certificate: Path | None, key: Path | None
) -> None:
    tls = {"--tls-ca": ca, "--tls-certificate": certificate, "--tls-key": key}
    given = [option for option, file in tls.items() if file is not None]
    if given and len(given) < len(tls):
        missing = [option for option in tls if option not in given]
        raise InputError(f"needs {' and '.join(missing)} too", key=given[0])
    if not given and secret is None:
        raise InputError("agents need credentials: give it, or the --tls files", key="--secret")
    for option, file in {**tls, "--secret": secret}.items():
        if file is not None and not file.is_file():
            raise InputError(f"there is no file {file}", key=option)
