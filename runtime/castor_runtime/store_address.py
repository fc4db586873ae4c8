"""How a store is written, and what it takes to be let in. Imports no client: agents fork first."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl

UNIX = "unix"
"""In place of a host: the rest of the address is a socket's path."""

PASSWORD_VARIABLE = "CASTOR_STORE_PASSWORD"  # noqa: S105 - the variable's name
"""Where the password is, unless the address names a file."""

FORM = (
    "etcd://[USER@]HOST:PORT[,HOST:PORT...], the same with etcds:// for TLS (?ca=FILE, and "
    "&certificate=FILE&key=FILE where etcd asks for them, or ?certificates=FOLDER with ca.pem, "
    "client.pem and client.key), or etcd+unix:///PATH"
)
"""How a store is written."""

_SYSTEM_AUTHORITIES = (
    Path("/etc/ssl/certs/ca-certificates.crt"),
    Path("/etc/pki/tls/certs/ca-bundle.crt"),
)
"""What a machine trusts: Debian's and Red Hat's."""

_KEYS = ("ca", "certificate", "key", "certificates", "password-file")


@dataclass(frozen=True, slots=True)
class Tls:
    """What a connection to the store is encrypted with.

    Attributes:
        ca: certificates of the authorities that may vouch for the store.
        certificate: that we show; None: none.
        key: of it.
    """

    ca: Path
    certificate: Path | None = None
    key: Path | None = None

    def missing(self) -> Path | None:
        """Return the first file that is not there, or may not be read; None if all can be."""
        for file in (self.ca, self.certificate, self.key):
            if file is not None and not os.access(file, os.R_OK):
                return file
        return None


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """Where a store is, and how it is entered.

    Attributes:
        endpoints: host and client port of members, the first preferred; or `UNIX` and a path.
        tls: None: nothing is encrypted.
        user: of etcd; "": none.
        password: of the user; never printed.
    """

    endpoints: tuple[tuple[str, int | str], ...]
    tls: Tls | None = None
    user: str = ""
    password: str = field(default="", repr=False)


def parse_store(url: str, environment: Mapping[str, str] = os.environ) -> StoreAddress:
    """Return what `url` says, with the password that it does not say.

    Args:
        url: `FORM`; `password-file=FILE` among what follows the "?" names the file that holds the
            user's password, else `PASSWORD_VARIABLE` does.
        environment: where that is looked up.

    Raises:
        ValueError: it is no such URL, holds a password, or a file is missing.
    """
    scheme, _, rest = url.partition("://")
    if scheme == "etcd+unix" and rest.startswith("/"):
        return StoreAddress(((UNIX, rest),))
    rest, _, query = rest.partition("?")
    options = _options(url, query)
    user, _, members = rest.rstrip("/").rpartition("@")
    if ":" in user:
        raise ValueError(
            "a password in the store's address can be read by everybody who lists processes: write "
            f"USER@HOST:PORT, and give it in {PASSWORD_VARIABLE} or by ?password-file=FILE"
        )
    if scheme not in ("etcd", "etcds") or (scheme == "etcd" and options.keys() - {"password-file"}):
        raise ValueError(f"write a store as {FORM}, not {url!r}")
    tls = _tls(options) if scheme == "etcds" else None
    if tls is not None and (missing := tls.missing()) is not None:
        raise ValueError(f"cannot read {missing}, which the store's address names")
    endpoints = tuple(_endpoint(url, part) for part in members.split(","))
    return StoreAddress(endpoints, tls, user, _password(user, options, environment))


def _options(url: str, query: str) -> dict[str, str]:
    try:
        options = dict(parse_qsl(query, strict_parsing=True)) if query else {}
    except ValueError as error:
        raise ValueError(f"write a store as {FORM}, not {url!r}") from error
    if unknown := options.keys() - set(_KEYS):
        raise ValueError(f"unknown in a store's address: {', '.join(sorted(unknown))}; use {_KEYS}")
    return options


def _endpoint(url: str, text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise ValueError(f"write a store as {FORM}, not {url!r}")
    return host, int(port)


def _tls(options: Mapping[str, str]) -> Tls:
    if "certificates" in options:
        folder = Path(options["certificates"])
        return Tls(folder / "ca.pem", folder / "client.pem", folder / "client.key")
    if ("certificate" in options) != ("key" in options):
        raise ValueError("in a store's address, certificate=FILE and key=FILE go together")
    own = [Path(options[name]) for name in ("certificate", "key") if name in options]
    if "ca" in options:
        return Tls(Path(options["ca"]), *own)
    for trusted in _SYSTEM_AUTHORITIES:
        if trusted.exists():
            return Tls(trusted, *own)
    raise ValueError("this machine trusts no authorities: add ?ca=FILE to the store's address")


def _password(user: str, options: Mapping[str, str], environment: Mapping[str, str]) -> str:
    if not user:
        return ""
    if file := options.get("password-file"):
        try:
            return Path(file).read_text(encoding="utf-8").rstrip("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read the password of the store's user: {error}") from error
    if (password := environment.get(PASSWORD_VARIABLE)) is None:
        raise ValueError(
            f"the store's user {user!r} needs a password: set {PASSWORD_VARIABLE}, or add "
            "?password-file=FILE to the address"
        )
    return password
