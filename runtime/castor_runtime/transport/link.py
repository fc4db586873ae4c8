"""A connection that is kept to one life of an agent, to know at once when that ends.

What is asked is the kernel at the other end, which acknowledges what is sent to it and accepts
connections however loaded or paused its agent is: silence is a host that is gone or cut off, never
one that is slow. A connection that broke is no evidence by itself: another one is tried for.

1. Nobody listens there (the host says so), or another life does: this one has ended.
2. Nothing is acknowledged, and no connection is accepted, for `within_s`: it cannot be reached.
3. A connection is accepted, or whatever goes wrong is this side's: it counts as reached.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Callable

from castor_policy.membership import BEATS
from castor_runtime.transport.channel import Channel, end_when_unacknowledged
from castor_runtime.transport.dialler import Dialler
from castor_runtime.transport.errors import PeerRefusedError
from castor_runtime.transport.reading import ping
from castor_runtime.transport.timeouts import Timeouts
from castor_runtime.transport.wire import Kind

_UNACKNOWLEDGED = 0.5
"""Of that time, after which a connection ends; the rest is for connecting anew."""

_AGAIN_S = 0.02
_AGAIN_LOST_S = 0.5

# What, beside a broken connection, says that nothing comes from there.
_SILENT = (errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH)


class _OtherLifeError(Exception):
    """Somebody else listens at the address."""


class PeerLink:
    """Watches one life of an agent, in a thread of its own, from `start` to `end`.

    Args:
        dialler: opens connections to it.
        timeouts: those of the dialler.
        incarnation: which life it is.
        within_s: it is lost once it cannot be reached for so long.
        tell: called in the link's thread: False when it is lost, True when it is reached again.
    """

    def __init__(
        self,
        dialler: Dialler,
        timeouts: Timeouts,
        incarnation: str,
        within_s: float,
        tell: Callable[[bool], None],
    ) -> None:
        self._dialler = dialler
        self._timeouts = timeouts
        self._incarnation = incarnation
        self._within_s = within_s
        self._tell = tell
        self._ended = threading.Event()
        self._reached_s = 0.0
        self._is_accepted = False
        self._is_lost = False
        self._thread = threading.Thread(target=self._run, name="castor-link", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._reached_s = time.monotonic()
        self._thread.start()

    def end(self) -> None:
        """Watch no more; nothing is told after this returns but what is being told."""
        self._ended.set()
        self._dialler.interrupt()

    def _run(self) -> None:
        with contextlib.closing(self._dialler):
            while not self._ended.is_set():
                self._look(self._try())
                self._ended.wait(_AGAIN_LOST_S if self._is_lost else _AGAIN_S)

    def _look(self, has_ended: bool) -> None:
        silent_s = time.monotonic() - self._reached_s
        is_lost = has_ended or silent_s >= self._within_s
        if is_lost and not (self._is_lost or self._ended.is_set()):
            self._is_lost = True
            self._tell(False)

    def _try(self) -> bool:
        """Connect, and stay for as long as that lasts; return whether the life has ended."""
        self._is_accepted = False
        try:
            channel = self._dialler.open(self._connected)
            self._check_life(channel)
            self._stay(channel)
        except (ConnectionRefusedError, _OtherLifeError):
            return True
        except PeerRefusedError:
            self._reached_s = time.monotonic()
        except OSError as error:
            self._failed(error)
        return False

    def _failed(self, error: OSError) -> None:
        """Say since when it has not been reached, by what ended the connection or the attempt."""
        now_s = time.monotonic()
        if error.errno == errno.ETIMEDOUT:
            self._reached_s = now_s - self._within_s * _UNACKNOWLEDGED
        elif isinstance(error, TimeoutError):
            if self._is_accepted:  # it is only too busy to say more
                self._reached_s = now_s
        elif not isinstance(error, ConnectionError) and error.errno not in _SILENT:
            self._reached_s = now_s

    def _connected(self, connection: socket.socket) -> None:
        self._reached_s, self._is_accepted = time.monotonic(), True
        end_when_unacknowledged(connection, self._within_s * _UNACKNOWLEDGED)

    def _check_life(self, channel: Channel) -> None:
        """Raise if somebody else answers: a port is another's soon after its owner has died."""
        if ping(channel, self._timeouts).get("incarnation") != self._incarnation:
            raise _OtherLifeError
        if self._is_lost and not self._ended.is_set():
            self._is_lost = False
            self._tell(True)

    def _stay(self, channel: Channel) -> None:
        beat_s = self._within_s / BEATS
        while not self._ended.is_set():
            channel.send(Kind.BEAT, timeout_s=self._within_s)
            stands = channel.outlives(beat_s)
            self._reached_s = time.monotonic()
            if not stands:
                return
