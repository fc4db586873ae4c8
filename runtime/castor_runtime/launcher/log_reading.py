"""The logs of all agents of a job, read together and followed: over the network, or in a folder."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Protocol, Self

from castor_runtime.agent.own_account import served_files
from castor_runtime.launcher.accounts import AT_ONCE
from castor_runtime.transport import Listing, PartMissingError, PeerError

_PIECES: Final = 64
"""So many pieces of a log are read at a time; what is left comes with the next call."""

_BACK_BYTES: Final = 64 << 10
"""So far back the last lines of a log are looked for first; then twice as far, and so on."""


class Reader(Protocol):
    """Reads one agent's logs; `PeerReader` over the network."""

    def listing(self) -> Listing:
        """Return which logs there are."""
        ...

    def read(self, name: str, offset: int) -> tuple[int, bytes]:
        """Return the size of a log, and a piece of it from `offset` on; b"" at its end.

        Raises:
            PartMissingError: there is no such log.
        """
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class FolderReader:
    """Reads the logs in an agent's folder on this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def listing(self) -> Listing:
        """Return which logs there are."""
        files = {name: path.stat().st_size for name, path in served_files(self._folder).items()}
        return Listing(socket.gethostname(), str(self._folder), files)

    def read(self, name: str, offset: int) -> tuple[int, bytes]:
        """Return the size of a log, and what it has from `offset` on.

        Raises:
            PartMissingError: there is no such log.
        """
        try:
            with (self._folder / name).open("rb") as file:
                size_bytes = file.seek(0, 2)
                file.seek(offset)
                return size_bytes, file.read(_BACK_BYTES)
        except FileNotFoundError as error:
            raise PartMissingError(f"there is no {name}") from error

    def close(self) -> None:
        """Nothing is held."""


class Line(NamedTuple):
    """A line of a log.

    Attributes:
        agent: whose.
        log: name of the file.
        text: without its end.
    """

    agent: str
    log: str
    text: str


@dataclass(slots=True)
class _Place:
    """How far a log has been read: up to a line's end, and what of the next one there was."""

    offset: int = 0
    rest: bytes = b""


@dataclass(slots=True)
class _Agent:
    reader: Reader
    places: dict[str, _Place] = field(default_factory=dict)
    is_met: bool = False


class JobLogs:
    """Reads what is new in the logs of a job's agents.

    For one thread at a time; it asks many agents at once. Use it as a context manager.

    Args:
        wanted: says of a log, by its name, whether it is to be read.
        tail: of the logs that an agent has when it is met, so many last lines; None: all. Logs that
            come later are read from their start.

    Attributes:
        unreached: agents that could not be asked at the last reading, and why.
    """

    def __init__(self, wanted: Callable[[str], bool], tail: int | None = None) -> None:
        self._wanted = wanted
        self._tail = tail
        self._agents: dict[str, _Agent] = {}
        self._pool = ThreadPoolExecutor(AT_ONCE, "castor-logs")
        self.unreached: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for agent in self._agents.values():
            agent.reader.close()
        self._pool.shutdown()

    def meet(self, name: str, reader: Reader) -> None:
        """Read an agent's logs from now on; of one that is known already, over another way."""
        known = self._agents.get(name)
        if known is None:
            self._agents[name] = _Agent(reader)
        else:
            known.reader.close()
            known.reader = reader

    def part(self, name: str) -> None:
        """Read nothing of an agent any more: it has ended; should it come back, it goes on."""
        self._agents[name].reader.close()
        self.unreached.pop(name, None)

    def read(self, names: set[str]) -> list[Line]:
        """Return what is new in the logs of these agents, by agent and log; whole lines."""
        asked = [(name, agent) for name, agent in sorted(self._agents.items()) if name in names]
        answers = self._pool.map(lambda one: self._read_agent(*one), asked)
        return [line for lines in answers for line in lines]

    def _read_agent(self, name: str, agent: _Agent) -> list[Line]:
        lines: list[Line] = []
        try:
            listing = agent.reader.listing()
            is_new, agent.is_met = not agent.is_met, True
            for log in sorted(filter(self._wanted, listing.files)):
                place = agent.places.get(log)
                if place is None:
                    place = agent.places[log] = _Place()
                    if is_new and self._tail is not None:
                        size_bytes = listing.files[log]
                        place.offset = _start_of_last(agent.reader, log, size_bytes, self._tail)
                lines += [Line(name, log, text) for text in _new_lines(agent.reader, log, place)]
        except (PeerError, OSError) as error:
            self.unreached[name] = str(error)
        else:
            self.unreached.pop(name, None)
        return lines


def _new_lines(reader: Reader, log: str, place: _Place) -> list[str]:
    found = []
    for _ in range(_PIECES):
        try:
            size_bytes, data = reader.read(log, place.offset)
        except PartMissingError:
            break  # put away, by logrotate or a new run
        if size_bytes < place.offset:
            place.offset, place.rest = 0, b""  # it has begun anew
            continue
        place.offset += len(data)
        *lines, place.rest = (place.rest + data).split(b"\n")
        found += [_shown(line) for line in lines]
        if not data:
            break
    return found


def _shown(line: bytes) -> str:
    """Return what a terminal shows of a line in the end: a progress bar writes over itself."""
    return line.decode("utf-8", errors="replace").rstrip("\r").rpartition("\r")[2]


def _start_of_last(reader: Reader, log: str, size_bytes: int, lines: int) -> int:
    """Return where the last lines of a log begin; one whose end is not written yet is none."""
    back_bytes = _BACK_BYTES
    while True:
        start = max(0, size_bytes - back_bytes)
        data = _between(reader, log, start, size_bytes)
        ends = [index for index, byte in enumerate(data) if byte == _NEWLINE]
        if len(ends) > lines:
            return start + ends[-lines - 1] + 1
        if start == 0:
            return 0
        back_bytes *= 2


_NEWLINE: Final = ord("\n")


def _between(reader: Reader, log: str, start: int, end: int) -> bytes:
    data = b""
    while start + len(data) < end:
        _, piece = reader.read(log, start + len(data))
        if not piece:
            break
        data += piece
    return data[: end - start]
