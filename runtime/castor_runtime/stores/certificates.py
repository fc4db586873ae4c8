"""Certificates of one run, for an etcd that others could reach: only who has one is served."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from castor_runtime.authority import Authority


@dataclass(frozen=True, slots=True)
class Certificates:
    """A folder of mode 0700 with an authority of its own, a server's certificate and a client's.

    Attributes:
        folder: with ca.pem, server.pem, server.key, client.pem and client.key.
    """

    folder: Path

    @property
    def ca(self) -> Path:
        """The authority's certificate."""
        return self.folder / "ca.pem"

    @property
    def client(self) -> tuple[Path, Path]:
        """A client's certificate and key."""
        return self.folder / "client.pem", self.folder / "client.key"

    @property
    def server(self) -> tuple[Path, Path]:
        """The server's certificate and key."""
        return self.folder / "server.pem", self.folder / "server.key"

    def make(self, address: str) -> None:
        """Make them for a server at an IP address, unless they are there."""
        if self.server[0].exists():
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        for unfinished in (*self.client, *self.server):
            unfinished.unlink(missing_ok=True)
        # Its key is never written: nobody else is ever let in.
        authority = Authority.new("castor store")
        self.ca.write_bytes(authority.own().certificate)
        authority.issue(address).write(*self.client)
        authority.issue(address).write(*self.server)

    def client_context(self) -> ssl.SSLContext:
        """Return what a client speaks TLS with."""
        context = ssl.create_default_context(cafile=str(self.ca))
        context.load_cert_chain(*map(str, self.client))
        return context

    def etcd_options(self) -> dict[str, str]:
        """Return the options by which etcd serves nobody without a certificate."""
        certificate, key = map(str, self.server)
        options: dict[str, str] = {}
        for prefix in ("", "peer-"):
            options |= {
                f"{prefix}client-cert-auth": "true",
                f"{prefix}trusted-ca-file": str(self.ca),
                f"{prefix}cert-file": certificate,
                f"{prefix}key-file": key,
            }
        return options
