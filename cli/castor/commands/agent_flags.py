"""The options of one machine's agent, for each command that runs one."""

from __future__ import annotations

import inspect
import os
import socket
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from castor.commands.job_flags import with_flags
from castor.commands.reading import read_option
from castor_configs.errors import InputError

if TYPE_CHECKING:
    from castor_runtime.agent.options import AgentOptions

CommandT = TypeVar("CommandT", bound=Callable[..., None])


class OnTerm(StrEnum):
    """What an agent does when it is told to end."""

    END = "end"
    DRAIN = "drain"


def _flags(
    *,
    name: Annotated[
        str, typer.Option(help="Unique in the job; default: this machine's name.")
    ] = "",
    folder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Logs; default ~/.local/state/castor/JOB/NAME."),
    ] = None,
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
    ports: Annotated[
        str,
        typer.Option(
            metavar="FIRST-LAST",
            help="To listen at, such as 7000-7019; gloo's and NCCL's are the kernel's to choose.",
        ),
    ] = "",
    secret: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The job's secret, the same everywhere.")
    ] = None,
    tls_ca: Annotated[Path | None, typer.Option(metavar="FILE", help="All agents' CA.")] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="This agent's certificate.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="And its key.")] = None,
    on_term: Annotated[
        OnTerm,
        typer.Option(help="SIGTERM has this machine end at once, or give its place away first."),
    ] = OnTerm.END,
    term_patience: Annotated[
        str, typer.Option(metavar="TIME", help="With --on-term drain: then it ends all the same.")
    ] = "60s",
    metrics_port: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            min=0,
            max=65535,
            help="Prometheus metrics, /healthz and /readyz at this port of the address; 0: any.",
            show_default="none",
        ),
    ] = None,
) -> None:
    """Stand for the options; only its parameters are looked at."""


def takes_agent_flags(command: CommandT) -> CommandT:
    """Give a command the options of an agent, in place of its `**flags`."""
    return with_flags(command, inspect.signature(_flags, eval_str=True).parameters.values())


def name_of(given: Mapping[str, Any]) -> str:
    """Return what this machine's agent is called."""
    return str(given["name"]) or socket.gethostname().partition(".")[0]


def agent_options(job: str, store: str, given: Mapping[str, Any], **also: Any) -> AgentOptions:
    """Return how an agent is started.

    Args:
        job: its name.
        store: its store's URL.
        given: values by the parameters' names, others among them.
        also: further fields of `AgentOptions`.

    Raises:
        InputError: an option is wrong, or credentials are missing.
    """
    from castor_runtime.agent.options import AgentOptions

    name = name_of(given)
    listen = _address_of(given["interface"]) if given["interface"] else given["listen"]
    _check_credentials(given)
    return AgentOptions(
        name=name,
        job=job,
        store=store,
        folder=given["folder"] or _logs() / job / name,
        domain=given["domain"],
        listen=listen,
        ports=_checked_ports(given["ports"]),
        secret=given["secret"],
        tls_ca=given["tls_ca"],
        tls_certificate=given["tls_certificate"],
        tls_key=given["tls_key"],
        metrics_port=given["metrics_port"],
        drain_on_term_s=_drain_on_term_s(given["on_term"], given["term_patience"]),
        **also,
    )


def _drain_on_term_s(on_term: OnTerm, patience: str) -> float:
    from castor_configs.quantities import parse_seconds

    patience_s = read_option(parse_seconds, patience, "--term-patience")
    if patience_s <= 0:
        raise InputError("give some time, such as 60s", key="--term-patience")
    return patience_s if on_term == OnTerm.DRAIN else 0.0


def _logs() -> Path:
    """Return where agents log: never the working folder, which several hosts may share.

    systemd says where by LogsDirectory=, others by the XDG base directories.
    """
    if given := os.environ.get("LOGS_DIRECTORY"):
        return Path(given.partition(":")[0])
    try:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    except RuntimeError as error:  # this user has no home
        raise InputError("say where logs go", key="--folder") from error
    return Path(state) / "castor"


def _address_of(interface: str) -> str:
    from castor_runtime.agent.rendezvous import address_of

    return read_option(address_of, interface, "--interface")


def _checked_ports(ports: str) -> str:
    from castor_runtime.ports import Ports

    read_option(Ports.parse, ports, "--ports")
    return ports


def _check_credentials(given: Mapping[str, Any]) -> None:
    secret = given["secret"]
    tls = {f"--{name.replace('_', '-')}": given[name] for name in _TLS}
    named = [option for option, file in tls.items() if file is not None]
    if named and len(named) < len(tls):
        missing = [option for option in tls if option not in named]
        raise InputError(f"needs {' and '.join(missing)} too", key=named[0])
    if not named and secret is None:
        raise InputError("agents need credentials: give it, or the --tls files", key="--secret")
    for option, file in {**tls, "--secret": secret}.items():
        if file is not None and not file.is_file():
            raise InputError(f"there is no file {file}", key=option)


_TLS = ("tls_ca", "tls_certificate", "tls_key")
