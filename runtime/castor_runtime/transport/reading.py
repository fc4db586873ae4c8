"""Reads what a peer tells of its agent: its logs, its account, its clock."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from castor_runtime.transport.channel import Channel
from castor_runtime.transport.credentials import Credentials
from castor_runtime.transport.dialler import Dialler, parse_address
from castor_runtime.transport.errors import (
    BrokenFrameError,
    PeerRefusedError,
    PeerUnreachableError,
)
from castor_runtime.transport.stream import expect
from castor_runtime.transport.timeouts import Timeouts
from castor_runtime.transport.wire import Kind, unpack_piece

_T = TypeVar("_T")

CLOCK = ("received_ns", "sent_ns")
"""What a STATUS says of the clock of the server's host."""

# An account or a piece of a log, and some.
_ANSWER_BYTES = 1 << 20
_READ_TIMEOUTS = Timeouts(connect_s=3.0, handshake_s=5.0, silence_s=20.0)
"""A server tells nothing while parts are on their way: that may take a while."""


@dataclass(frozen=True, slots=True)
class Listing:
    """Where an agent's logs lie, and which there are.

    Attributes:
        host: its machine's name.
        folder: there.
        files: size in bytes of each log, by name.
    """

    host: str
    folder: str
    files: dict[str, int]


@dataclass(frozen=True, slots=True)
class PeerClock:
    """A peer's clock against this one.

    Attributes:
        offset_ns: to be added to this host's times to have the peer's.
        uncertainty_ns: the true offset is no further away.
    """

    offset_ns: int
    uncertainty_ns: int


class PeerReader:
    """Reads from one peer, over one connection that is opened anew once it is lost.

    For one thread at a time. Every method raises PeerUnreachableError if the peer does not answer
    and PeerRefusedError if one side refuses the other; both name the address.

    Args:
        address: host:port of the peer's server.
        credentials: what both sides prove.
        run: which run of the job both belong to.
        timeouts: bounds on waiting.

    Raises:
        ValueError: the address is none.
        OSError: a certificate cannot be read.
    """

    def __init__(
        self,
        address: str,
        credentials: Credentials,
        run: str,
        timeouts: Timeouts = _READ_TIMEOUTS,
    ) -> None:
        host, port = parse_address(address)
        self._address = address
        self._timeouts = timeouts
        context = credentials.client_context()
        self._dialler = Dialler(host, port, credentials, run, context, timeouts)
        self._channel: Channel | None = None

    def listing(self) -> Listing:
        """Return which logs there are."""

        def ask(channel: Channel) -> Listing:
            channel.send(Kind.LIST, timeout_s=self._timeouts.silence_s)
            found = json.loads(self._answer(channel, Kind.FILES))
            return Listing(str(found["host"]), str(found["folder"]), dict(found["files"]))

        return self._asked(ask)

    def read(self, name: str, offset: int) -> tuple[int, bytes]:
        """Return the size of a log, and a piece of it from `offset` on; b"" at its end.

        Raises:
            PartMissingError: there is no such log.
        """

        def ask(channel: Channel) -> tuple[int, bytes]:
            request = {"file": name, "offset": offset}
            channel.send_json(Kind.READ, request, timeout_s=self._timeouts.silence_s)
            return unpack_piece(self._answer(channel, Kind.BYTES))

        return self._asked(ask)

    def account(self) -> str:
        """Return what the agent tells of the job (`castor_records.account`)."""

        def ask(channel: Channel) -> str:
            channel.send(Kind.TELL, timeout_s=self._timeouts.silence_s)
            return self._answer(channel, Kind.ACCOUNT).decode("ascii")

        return self._asked(ask)

    def clock(self) -> PeerClock:
        """Return how far the peer's clock is from this one; see `ask_clock`."""
        return self._asked(lambda channel: ask_clock(channel, self._timeouts))

    def close(self) -> None:
        """Close the connection."""
        self._channel = None
        self._dialler.close()

    def _answer(self, channel: Channel, kind: Kind) -> bytes:
        frame = expect(channel, kind, self._timeouts.silence_s)
        return channel.receive_body(
            frame, limit_bytes=_ANSWER_BYTES, timeout_s=self._timeouts.silence_s
        )

    def _asked(self, ask: Callable[[Channel], _T]) -> _T:
        """Ask, over a new connection if the one before has been lost since."""
        fresh = self._channel is None
        try:
            if self._channel is None:
                self._channel = self._dialler.open()
            return ask(self._channel)
        except PeerRefusedError as error:
            self.close()
            raise PeerRefusedError(f"{self._address}: {error}") from error
        except (OSError, KeyError, TypeError, ValueError) as error:
            self.close()
            if not fresh and isinstance(error, OSError):
                return self._asked(ask)
            reason = str(error) or f"no answer within {self._timeouts.silence_s:g} s"
            raise PeerUnreachableError(f"{self._address}: {reason}") from error


def ask_clock(
    channel: Channel,
    timeouts: Timeouts,
    *,
    samples: int = 5,
    clock_ns: Callable[[], int] = time.time_ns,
) -> PeerClock:
    """Return how far the peer's clock is from `clock_ns`, by the fastest of several answers.

    The middle between question and answer here was the middle between their arrival and departure
    there, if both ways took equally long; at worst one took no time at all. So the offset is
    uncertain by half of what both ways took together (Cristian 1989, as in NTP).

    Raises:
        BrokenFrameError: the answer does not say when it was sent.
        OSError: the connection is lost.
    """
    best: PeerClock | None = None
    for _ in range(samples):
        asked_ns, began_ns = clock_ns(), time.monotonic_ns()
        answer = ping(channel, timeouts)
        took_ns = time.monotonic_ns() - began_ns
        try:
            received_ns, sent_ns = (int(answer[name]) for name in CLOCK)
        except (KeyError, TypeError, ValueError) as error:
            raise BrokenFrameError(f"a STATUS that lacks something: {error!r}") from error
        offset_ns = ((received_ns - asked_ns) + (sent_ns - asked_ns - took_ns)) // 2
        # Rounded up, and a microsecond for what the two clocks here tell apart.
        uncertainty_ns = max(0, took_ns - (sent_ns - received_ns)) // 2 + 1_000
        found = PeerClock(offset_ns, uncertainty_ns)
        if best is None or found.uncertainty_ns < best.uncertainty_ns:
            best = found
    assert best is not None, "it was asked once at least"
    return best


def ping(channel: Channel, timeouts: Timeouts) -> dict[str, Any]:
    """Return what the peer answers to a ping, over a connection that is open.

    Raises:
        OSError: the connection is lost.
    """
    channel.send(Kind.PING, timeout_s=timeouts.silence_s)
    frame = expect(channel, Kind.STATUS, timeouts.silence_s)
    return channel.receive_json(frame, timeout_s=timeouts.silence_s)
