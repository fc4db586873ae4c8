"""What an agent proves to its peers, and they to it: a secret of the job, or certificates."""

from __future__ import annotations

import secrets
import ssl
from dataclasses import dataclass, field
from pathlib import Path

SHORTEST_SECRET_BYTES = 16
_NEW_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class JobSecret:
    """A secret that all agents of the job share; it never travels.

    It authenticates both ends, every frame's header and all metadata. Tensor data are guarded by
    the xxh3_64 digests in those headers: enough against every accident, but not secret, and not
    proof against an attacker on the link who computes collisions. There, use `MutualTls`.

    Attributes:
        secret: random bytes.

    Raises:
        ValueError: the secret is too short.
    """

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) < SHORTEST_SECRET_BYTES:
            raise ValueError(
                f"the job secret has {len(self.secret)} bytes; "
                f"give at least {SHORTEST_SECRET_BYTES} random ones"
            )

    @classmethod
    def new(cls) -> JobSecret:
        """Return a secret that nobody has."""
        return cls(secrets.token_bytes(_NEW_SECRET_BYTES))

    @classmethod
    def read(cls, path: Path) -> JobSecret:
        """Return the secret that a file holds, all of its bytes.

        Raises:
            OSError: the file cannot be read.
            ValueError: the secret is too short.
        """
        return cls(path.read_bytes())

    @property
    def handshake_key(self) -> bytes:
        """The key of the challenge."""
        return self.secret

    def server_context(self) -> ssl.SSLContext | None:
        """Return None: the connection is not encrypted."""
        return None

    def client_context(self) -> ssl.SSLContext | None:
        """Return None: the connection is not encrypted."""
        return None


@dataclass(frozen=True, slots=True)
class MutualTls:
    """Certificates of one authority that signs for this job's agents and nobody else.

    Both sides must show one. Host names are not compared: agents are known by their addresses,
    which change with every replacement, and the authority vouches for them.

    Attributes:
        ca: certificate of the authority, PEM.
        certificate: of this agent, PEM.
        key: of this agent, PEM, without a password.
    """

    ca: Path
    certificate: Path
    key: Path

    @property
    def handshake_key(self) -> bytes:
        """No secret of our own: TLS has authenticated both ends before the challenge begins."""
        return b""

    def server_context(self) -> ssl.SSLContext | None:
        """Return a context that demands a client's certificate.

        Raises:
            OSError: a file cannot be read, or holds no valid certificate or key (ssl.SSLError).
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # Sessions are not resumed: a ticket would let a client in without its certificate.
        context.num_tickets = 0
        return self._armed(context)

    def client_context(self) -> ssl.SSLContext | None:
        """Return a context that demands a server's certificate.

        Raises:
            OSError: a file cannot be read, or holds no valid certificate or key (ssl.SSLError).
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        return self._armed(context)

    def _armed(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self.ca)
        context.load_cert_chain(self.certificate, self.key)
        return context


Credentials = JobSecret | MutualTls
