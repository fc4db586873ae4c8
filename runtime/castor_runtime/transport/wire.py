"""The bytes on the wire: handshake messages, frames, and the seals that authenticate them.

Handshake (all of fixed size; a magic names the protocol's version):

    client: magic(16) nonce(32) run(8)
    server: magic(16) nonce(32) run(8) proof(32)
    client: proof(32)

Where the client's certificate is not for the address that it comes from, the server says, instead:

    server: refusal(16) words(256), UTF-8, filled up with NUL

A proof is HMAC-SHA256(key, label magic nonces runs): the labels keep one from being reflected, the
fresh nonces keep one from being replayed. Each direction then has a session key of its own, derived
from the same key, nonces and runs. Each side says which run of the job it belongs to; where they
differ, both refuse, in words, before anything is offered: a secret may be shared by several runs.

Frame: header(24) seal(16), then `length` bytes of body. The header is big endian: kind u8, 3 zero
bytes, index u32, length u64, digest u64. The seal is HMAC-SHA256(session key, counter header),
cut to 16 bytes; counter counts the frames of that direction, so that a frame that was recorded,
dropped, repeated or taken from another connection does not fit. The bodies of all kinds but CHUNK
end with a seal of their own (not counted in `length`). A CHUNK's body is tensor data, which the
sealed header vouches for by `digest`, its xxh3_64.

    kind     from    index          body
    PING     client                 empty
    STATUS   server                 JSON object
    OPEN     client                 JSON: fetch, rank, iteration, fingerprint (hex), urgent
    PART     server                 JSON: data_bytes, chunk_bytes, meta_bytes, identity, fingerprint
    GET      client  first chunk    u32: number of chunks
    CHUNK    server  chunk          data, `digest` is set
    GET_META client                 empty
    META     server                 the metadata
    FAILURE  server                 JSON: code, message
    LIST     client                 empty
    FILES    server                 JSON: host, folder, files: {name: size in bytes}
    READ     client                 JSON: file, offset
    BYTES    server                 u64: size of the file; then its bytes from offset on
    TELL     client                 empty
    BEAT     client                 empty, and not answered: it keeps a connection in use
    ACCOUNT  server                 what the agent tells of the job (`castor_records.account`)

A STATUS says when the PING came and when it is sent, by the clock of the server's host.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass
from enum import IntEnum

from castor_runtime.transport.errors import BrokenFrameError

MAGIC = b"castor-peer/3\r\n\0"
REFUSAL = b"castor-refuse/3\n"
REFUSAL_BYTES = 256
NONCE_BYTES = 32
RUN_BYTES = 8
PROOF_BYTES = 32
SEAL_BYTES = 16
# Largest JSON body: nothing that is longer is read.
CONTROL_BYTES = 1 << 20

_HEADER = struct.Struct(">B3xIQQ")
_COUNTER = struct.Struct(">Q")
_COUNT = struct.Struct(">I")
_SIZE = struct.Struct(">Q")
HEADER_BYTES = _HEADER.size + SEAL_BYTES


class Kind(IntEnum):
    """What a frame is."""

    PING = 1
    STATUS = 2
    OPEN = 3
    PART = 4
    GET = 5
    CHUNK = 6
    GET_META = 7
    META = 8
    FAILURE = 9
    LIST = 10
    FILES = 11
    READ = 12
    BYTES = 13
    TELL = 14
    ACCOUNT = 15
    BEAT = 16


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame's header, authenticated.

    Attributes:
        kind: what it is.
        index: of the chunk, or 0.
        length_bytes: of the body, without its seal.
        digest: xxh3_64 of a chunk, or 0.
    """

    kind: Kind
    index: int = 0
    length_bytes: int = 0
    digest: int = 0


class Seal:
    """Seals the frames of one direction of one connection, or checks them: in order, once each."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._counter = 0

    def pack(self, frame: Frame) -> bytes:
        """Return the sealed header of the next frame."""
        header = _HEADER.pack(frame.kind, frame.index, frame.length_bytes, frame.digest)
        self._counter += 1
        return header + self._of(b"head", header)

    def unpack(self, sealed: bytes) -> Frame:
        """Return the next frame's header.

        Raises:
            BrokenFrameError: the seal does not fit, or the kind is unknown.
        """
        header, seal = sealed[: _HEADER.size], sealed[_HEADER.size :]
        self._counter += 1
        if not hmac.compare_digest(seal, self._of(b"head", header)):
            raise BrokenFrameError("a frame's seal does not fit: forged, repeated or damaged")
        kind, index, length_bytes, digest = _HEADER.unpack(header)
        try:
            return Frame(Kind(kind), index, length_bytes, digest)
        except ValueError as error:
            raise BrokenFrameError(f"frame of unknown kind {kind}") from error

    def of_body(self, body: bytes | bytearray) -> bytes:
        """Return the seal of the body of the frame that was packed or unpacked last."""
        return self._of(b"body", body)

    def check_body(self, body: bytes | bytearray, seal: bytes | bytearray) -> None:
        """Check the body of the frame that was unpacked last.

        Raises:
            BrokenFrameError: the seal does not fit.
        """
        if not hmac.compare_digest(seal, self.of_body(body)):
            raise BrokenFrameError("a frame's body does not fit its seal: forged or damaged")

    def _of(self, label: bytes, content: bytes | bytearray) -> bytes:
        message = label + _COUNTER.pack(self._counter) + content
        return hmac.digest(self._key, message, "sha256")[:SEAL_BYTES]


@dataclass(frozen=True, slots=True)
class Challenge:
    """Both nonces and runs of a handshake, and the key that both sides should have.

    Attributes:
        key: the job's secret (empty under TLS, which has authenticated both ends).
        client_nonce: the client's.
        server_nonce: the server's.
        client_run: which run of the job the client belongs to.
        server_run: and the server.
    """

    key: bytes
    client_nonce: bytes
    server_nonce: bytes
    client_run: bytes
    server_run: bytes

    def server_proof(self) -> bytes:
        """Return what only a server with the key can say."""
        return self._derive(b"server proof")

    def client_proof(self) -> bytes:
        """Return what only a client with the key can say."""
        return self._derive(b"client proof")

    def client_seal(self) -> Seal:
        """Return the seal of the frames from client to server."""
        return Seal(self._derive(b"client frames"))

    def server_seal(self) -> Seal:
        """Return the seal of the frames from server to client."""
        return Seal(self._derive(b"server frames"))

    def _derive(self, label: bytes) -> bytes:
        message = label + MAGIC + self.client_nonce + self.server_nonce
        message += self.client_run + self.server_run
        return hmac.digest(self.key, message, "sha256")


def identity(meta: bytes, digests: tuple[int, ...]) -> str:
    """Return what tells two checkpoints of one rank and iteration apart, as hex.

    The streams of a fetch compare it, so that they never mix two checkpoints.
    """
    content = hashlib.blake2b(meta, digest_size=16)
    content.update(struct.pack(f">{len(digests)}Q", *digests))
    return content.hexdigest()


def pack_count(count: int) -> bytes:
    """Return the body of a GET."""
    return _COUNT.pack(count)


def unpack_count(body: bytes) -> int:
    """Return the number of chunks that a GET asks for.

    Raises:
        BrokenFrameError: the body has another size.
    """
    if len(body) != _COUNT.size:
        raise BrokenFrameError(f"a GET with a body of {len(body)} bytes, not {_COUNT.size}")
    return int(_COUNT.unpack(body)[0])


def pack_piece(size_bytes: int, data: bytes) -> bytes:
    """Return the body of a BYTES: how long the file is, and a piece of it."""
    return _SIZE.pack(size_bytes) + data


def unpack_piece(body: bytes) -> tuple[int, bytes]:
    """Return the size of a file, and the piece of it that a BYTES brings.

    Raises:
        BrokenFrameError: the body is too short.
    """
    if len(body) < _SIZE.size:
        raise BrokenFrameError(f"a BYTES with a body of {len(body)} bytes")
    return int(_SIZE.unpack(body[: _SIZE.size])[0]), body[_SIZE.size :]
