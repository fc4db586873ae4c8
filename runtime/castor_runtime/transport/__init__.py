"""Parts of a checkpoint from one agent's memory into another's, over TCP.

A `PeerServer` offers the parts that its agent holds; a `PeerClient` fetches one from all its
holders straight into the checkpoint memory that it shall live in. Every connection is authenticated
both ways (`JobSecret` or `MutualTls`), every chunk is verified when it arrives, and a fetch
outlives dropped connections and all holders but one.

From here outwards: `wire` (frames and their seals), `channel` (one authenticated connection),
`dialler` (opens them), `fetching` (what the streams of one fetch share), `stream`, `client`,
`turns` (who may send), `server`; `link` is a connection that is kept to know that a peer is there.
Beside parts an agent tells its peers how it is, what has happened and what its logs say: `telling`
is the server's side of that, `reading` the other.
"""

from __future__ import annotations

from castor_runtime.transport.client import FetchStats, PeerClient
from castor_runtime.transport.credentials import Credentials, JobSecret, MutualTls
from castor_runtime.transport.errors import (
    CorruptPartError,
    PartMissingError,
    PeerError,
    PeerRefusedError,
    PeerUnreachableError,
)
from castor_runtime.transport.link import PeerLink
from castor_runtime.transport.parts import PartSource, ReadablePart, WritablePart
from castor_runtime.transport.reading import Listing, PeerClock, PeerReader
from castor_runtime.transport.server import PeerServer, ServerLimits
from castor_runtime.transport.telling import Told
from castor_runtime.transport.timeouts import Timeouts

__all__ = [
    "CorruptPartError",
    "Credentials",
    "FetchStats",
    "JobSecret",
    "Listing",
    "MutualTls",
    "PartMissingError",
    "PartSource",
    "PeerClient",
    "PeerClock",
    "PeerError",
    "PeerLink",
    "PeerReader",
    "PeerRefusedError",
    "PeerServer",
    "PeerUnreachableError",
    "ReadablePart",
    "ServerLimits",
    "Timeouts",
    "Told",
    "WritablePart",
]
