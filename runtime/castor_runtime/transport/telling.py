"""What a server tells of its agent beside parts: its logs and its account. Never in parts' way.

Who reads logs is a person; who fetches a part is a machine that stands still until it has it. So:

- Nothing is read or sent while parts are on their way, for up to `AFTER_PARTS_S` an answer.
- One answer is sent at a time, of `PIECE_BYTES` at most, and the next one only after so long that
  all readers together have `RATE_BYTES_PER_S`: about a hundredth of a 10 Gbit/s link.
- A reader that takes nothing gives its turn up; those after it need not wait for it.
- At most `CONNECTIONS` read at once: those of peers are not taken up by them.

Files are known by names of a closed list, which the agent makes: a name that comes from outside is
looked up there, and is never part of a path.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from castor_runtime.transport.channel import Channel
from castor_runtime.transport.errors import BrokenFrameError, PartMissingError, PeerRefusedError
from castor_runtime.transport.timeouts import Timeouts
from castor_runtime.transport.turns import SendTurns, Turn
from castor_runtime.transport.wire import Frame, Kind, pack_piece

PIECE_BYTES = 256 << 10
RATE_BYTES_PER_S = 16 << 20
AFTER_PARTS_S = 5.0
CONNECTIONS = 16


@dataclass(frozen=True, slots=True)
class Told:
    """What an agent lets its peers know; what it may be asked for is here and nowhere else.

    Attributes:
        folder: where its logs lie, as people know it.
        files: returns what may be read, by name.
        account: returns what it tells of the job (`castor_records.account`); called in a thread.
        clock_ns: the clock of its host.
    """

    folder: str = ""
    files: Callable[[], Mapping[str, Path]] = dict
    account: Callable[[], str] = str
    clock_ns: Callable[[], int] = time.time_ns


class Telling:
    """Answers those who read.

    Args:
        told: what there is to tell.
        parts: who may send parts, who come first.
        timeouts: bounds on waiting for a reader.
    """

    def __init__(self, told: Told, parts: SendTurns, timeouts: Timeouts) -> None:
        self.clock_ns = told.clock_ns
        self._told = told
        self._parts = parts
        self._timeouts = timeouts
        self._turns = SendTurns(1)
        self._readers: set[Channel] = set()
        self._lock = threading.Lock()

    def answer(self, channel: Channel, frame: Frame) -> None:
        """Answer a LIST, READ or TELL.

        Raises:
            PartMissingError: there is no such file.
            PeerRefusedError: too many read already.
            OSError: the connection is lost.
        """
        body = channel.receive_body(frame, timeout_s=self._timeouts.silence_s)
        self._admit(channel)
        self._parts.wait_idle(AFTER_PARTS_S)
        turn = Turn(self._turns, str(id(channel)), self._timeouts.silence_s)
        try:
            kind, answer = self._answer(frame.kind, body)
            timeout_s = self._timeouts.transfer_s(len(answer))
            channel.send(kind, answer, timeout_s=timeout_s, on_stall=turn.give_back)
            if turn.is_held:
                time.sleep(len(answer) / RATE_BYTES_PER_S)
        finally:
            turn.give_back()

    def leave(self, channel: Channel) -> None:
        """Forget a connection that has ended."""
        with self._lock:
            self._readers.discard(channel)

    def _admit(self, channel: Channel) -> None:
        with self._lock:
            if channel not in self._readers and len(self._readers) >= CONNECTIONS:
                raise PeerRefusedError(f"{CONNECTIONS} read its logs already; ask again later")
            self._readers.add(channel)

    def _answer(self, kind: Kind, body: bytes) -> tuple[Kind, bytes]:
        match kind:
            case Kind.LIST:
                return Kind.FILES, _json(self._listing())
            case Kind.READ:
                name, offset = _read_request(body)
                path = self._told.files().get(name)
                if path is None:
                    raise PartMissingError(f"the agent has no log {name!r}")
                return Kind.BYTES, pack_piece(*_piece(path, offset))
            case _:
                return Kind.ACCOUNT, self._told.account().encode("ascii")

    def _listing(self) -> dict[str, Any]:
        sizes = {}
        for name, path in sorted(self._told.files().items()):
            try:
                sizes[name] = path.stat().st_size
            except OSError:
                continue  # put away since
        return {"host": socket.gethostname(), "folder": self._told.folder, "files": sizes}


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


def _read_request(body: bytes) -> tuple[str, int]:
    try:
        request = json.loads(body)
        name, offset = str(request["file"]), int(request["offset"])
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenFrameError(f"a READ that lacks something: {error!r}") from error
    if not 0 <= offset < 1 << 63:
        raise BrokenFrameError(f"a READ from offset {offset}")
    return name, offset


def _piece(path: Path, offset: int) -> tuple[int, bytes]:
    """Return the size of a file, and a piece of it; what is no ordinary file is not opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise PartMissingError(f"{path.name} cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise PartMissingError(f"{path.name} is no ordinary file")
        return found.st_size, os.pread(file.fileno(), PIECE_BYTES, offset)
