"""What an agent proves to its peers, and they to it: a secret of the job, or certificates."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from castor_runtime.transport.peer_certificates import names_in

SHORTEST_SECRET_BYTES = 16
_NEW_SECRET_BYTES = 32
_SALT_BYTES = 16
_SECRET, _TLS = "secret", "tls"
_HANDSHAKE_TURNS = 8
"""More than a handshake of TLS 1.2 or 1.3 takes."""


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

    def mark(self) -> str:
        """Return a text by which others know whether they have this secret; it tells no more.

        Salted and slow to try (scrypt): the store may be read by more people than the secret.
        """
        return self._mark(secrets.token_bytes(_SALT_BYTES))

    def fits(self, mark: str) -> bool:
        """Say whether `mark` is of this secret."""
        kind, _, rest = mark.partition(":")
        salt, _, _ = rest.partition(":")
        try:
            return kind == _SECRET and hmac.compare_digest(self._mark(bytes.fromhex(salt)), mark)
        except ValueError:
            return False

    def _mark(self, salt: bytes) -> str:
        digest = hashlib.scrypt(self.secret, salt=salt, n=1 << 12, r=8, p=1, dklen=32)
        return f"{_SECRET}:{salt.hex()}:{digest.hex()}"

    def proof(self, *of: str) -> str:
        """Return what only who has the secret can say of these texts."""
        message = b"report proof" + json.dumps(of).encode()
        return hmac.digest(self.secret, message, "sha256").hex()

    def believes(self, proof: str, *of: str) -> bool:
        """Say whether `proof` is of somebody who has the secret."""
        return hmac.compare_digest(proof, self.proof(*of))

    def server_context(self) -> ssl.SSLContext | None:
        """Return None: the connection is not encrypted."""
        return None

    def client_context(self) -> ssl.SSLContext | None:
        """Return None: the connection is not encrypted."""
        return None


@dataclass(frozen=True, slots=True)
class MutualTls:
    """Certificates of one authority that signs for this job's agents and nobody else.

    Both sides must show one, and each is compared with the address of who shows it
    (`peer_certificates`): what is stolen from one host is of no use on another.

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

    def mark(self) -> str:
        """Return a text by which others know whether they have the same authority.

        Raises:
            OSError: the authority's file cannot be read, or holds no certificate (ssl.SSLError).
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.ca)
        digests = sorted(hashlib.sha256(c).hexdigest() for c in context.get_ca_certs(True))
        return ":".join([_TLS, *digests])

    def fits(self, mark: str) -> bool:
        """Say whether `mark` is of the same authority, or of one of several.

        Raises:
            OSError: as of `mark`.
        """
        kind, *theirs = mark.split(":")
        return kind == _TLS and not set(theirs).isdisjoint(self.mark().split(":")[1:])

    def check(self) -> list[str]:
        """Show the own certificate to oneself: peers accept it if they have the same authority.

        Returns:
            The names and addresses that it is for.

        Raises:
            OSError: the authority does not accept it, or a file is unusable (ssl.SSLError).
        """
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = self.client_context()
        context.check_hostname = False  # which name is wanted the caller knows
        client = context.wrap_bio(to_client, to_server)
        sides = [self.server_context().wrap_bio(to_server, to_client, server_side=True), client]
        for _ in range(_HANDSHAKE_TURNS):
            for side in list(sides):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
                sides.remove(side)
        return names_in(client.getpeercert())

    def proof(self, *_of: str) -> str:
        """Return nothing: every handshake proves it, with the key of the certificate."""
        return ""

    def believes(self, _proof: str, *_of: str) -> bool:
        """Say that a report may be believed: who is spoken to has to prove it."""
        return True

    def server_context(self) -> ssl.SSLContext:
        """Return a context that demands a client's certificate.

        Raises:
            OSError: a file cannot be read, or holds no valid certificate or key (ssl.SSLError).
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # Sessions are not resumed: a ticket would let a client in without its certificate.
        context.num_tickets = 0
        return self._armed(context)

    def client_context(self) -> ssl.SSLContext:
        """Return a context that demands a server's certificate, for the host that was dialled.

        Raises:
            OSError: a file cannot be read, or holds no valid certificate or key (ssl.SSLError).
        """
        return self._armed(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))

    def _armed(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self.ca)
        context.load_cert_chain(self.certificate, self.key)
        return context


Credentials = JobSecret | MutualTls
