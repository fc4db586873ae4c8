"""Why a part could not be had from a peer: each kind calls for another next step."""

from __future__ import annotations


class PeerError(Exception):
    """A peer did not give what was asked; the message names it by its address."""


class PeerUnreachableError(PeerError):
    """No connection, or none that lasts: ask another holder, or the same one later."""


class PeerRefusedError(PeerError):
    """One side refuses the other: credentials, protocol, job, topology or sizes do not match."""


class PartMissingError(PeerError):
    """The peer holds no complete checkpoint of that rank and iteration."""


class CorruptPartError(PeerError):
    """A chunk did not match its digest twice in a row: the peer's copy is damaged."""


class BrokenFrameError(ConnectionError):
    """What arrives is no frame of this session; the connection is given up and opened anew."""
