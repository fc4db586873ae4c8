"""castor certs: certificates for a job's agents and its etcd, by an authority of one's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from castor_configs.errors import InputError

if TYPE_CHECKING:
    from castor_runtime.authority import Authority

certs_app = typer.Typer(
    help="Make certificates for a job's agents and its etcd.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)

_AUTHORITY, _AUTHORITY_KEY = "ca.pem", "ca.key"
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:-]*[A-Za-z0-9])?")

_Hosts = Annotated[
    list[str],
    typer.Argument(
        metavar="HOST...",
        help="Each by its name or address; by all it is reached by: node-0,10.0.0.7.",
    ),
]
_Folder = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Where the certificates are; keep it private.")
]
_Days = Annotated[int, typer.Option(min=1, metavar="DAYS", help="They are valid for so long.")]


@certs_app.command()
def init(hosts: _Hosts, *, out: _Folder = Path("certificates"), days: _Days = 3650) -> None:
    """Make an authority, and a certificate and key for each host.

    Example: castor certs init etcd.lab,10.0.0.1 node-0,10.0.0.10 node-1,10.0.0.11
    """
    from castor_runtime.authority import Authority

    named = _named(hosts)
    if (out / _AUTHORITY).exists() or (out / _AUTHORITY_KEY).exists():
        raise InputError(
            f"{out} has an authority already: add hosts by `castor certs add`", key="--out"
        )
    _check_new(out, named)
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority = Authority.new("castor", days)
    authority.own().write(out / _AUTHORITY, out / _AUTHORITY_KEY)
    _issue(authority, out, named, days)
    typer.echo(_HOW.format(folder=out, host=next(iter(named))))


@certs_app.command()
def add(hosts: _Hosts, *, out: _Folder = Path("certificates"), days: _Days = 3650) -> None:
    """Make certificates for more hosts, by the authority that `castor certs init` has made.

    Example: castor certs add node-2,10.0.0.12
    """
    from castor_runtime.authority import Authority

    named = _named(hosts)
    try:
        authority = Authority.read(out / _AUTHORITY, out / _AUTHORITY_KEY)
    except (OSError, ValueError) as error:
        raise InputError(
            f"no authority there: {error}; make one by `castor certs init`", key="--out"
        ) from error
    _check_new(out, named)
    _issue(authority, out, named, days)


def _named(hosts: list[str]) -> dict[str, list[str]]:
    """Return for each host, by its first name, all of them."""
    named: dict[str, list[str]] = {}
    for host in hosts:
        names = host.split(",")
        for name in names:
            if not _HOST.fullmatch(name):
                raise InputError(f"{name!r} is no host's name or address", key="HOST")
        if names[0] == "ca":
            raise InputError("ca.pem is the authority's: name the host otherwise", key="HOST")
        if names[0] in named:
            raise InputError(f"{names[0]} is named twice: write NAME,NAME", key="HOST")
        named[names[0]] = names
    return named


def _check_new(out: Path, named: dict[str, list[str]]) -> None:
    for name in named:
        for file in (out / f"{name}.pem", out / f"{name}.key"):
            if file.exists():
                raise InputError(f"{file} is there already: remove it first", key="HOST")


def _issue(authority: Authority, out: Path, named: dict[str, list[str]], days: int) -> None:
    for name, names in named.items():
        authority.issue(*names, days=days).write(out / f"{name}.pem", out / f"{name}.key")
        typer.echo(f"{out / name}.pem and .key: for {' and '.join(names)}")


_HOW = """\
Give each host its own two files and {folder}/ca.pem; {folder}/ca.key stays here: who has it makes
more. Then
  agents  --tls-ca ca.pem --tls-certificate {host}.pem --tls-key {host}.key
  etcd    --client-cert-auth --trusted-ca-file ca.pem --cert-file {host}.pem --key-file {host}.key
  --store etcds://{host}:2379?ca=ca.pem&certificate=HOST.pem&key=HOST.key"""
