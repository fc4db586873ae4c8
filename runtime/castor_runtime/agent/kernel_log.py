"""What the kernel says of a process that it has killed, and of hardware that fails under it.

`/dev/kmsg` gives a record at each read. It takes root, or CAP_SYSLOG, or `kernel.dmesg_restrict=0`.
Its process numbers are the host's: in a container, which has its own, they say nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PATH: Final = Path("/dev/kmsg")

_HOSTS_NUMBERS: Final = "pid:[4026531836]"
"""The first process namespace's name: the kernel gives it the same number on every machine."""

_RECORD_BYTES = 8192
_MOST = 200
"""So many records are kept of those that may tell something."""

_FRESH_S = 60.0
"""Nobody's own error explains an end that comes later than this after it."""

_KILLED = re.compile(r"[Oo]ut of memory: Killed process (\d+)")
_OF_A_GPU = re.compile(r"NVRM: Xid \(.*?\): \d+(?:, pid='?(\d+))?")
_OF_THE_MACHINE = re.compile(r"\[Hardware Error\]|Machine check|EDAC \w+: UE ")


@dataclass(frozen=True, slots=True)
class KernelWord:
    """What the kernel says of a process's end; `of_it`: it names that process, and no doubt."""

    text: str
    of_it: bool


class KernelLog:
    """The kernel's records from now on.

    Args:
        path: of the log.
        has_hosts_numbers: processes have the numbers that the kernel's log calls them by.
    """

    def __init__(self, path: Path = PATH, *, has_hosts_numbers: bool | None = None) -> None:
        self._knows_numbers = (
            numbers_are_hosts() if has_hosts_numbers is None else has_hosts_numbers
        )
        self._file: int | None = None
        self._told: deque[_Record] = deque(maxlen=_MOST)
        with contextlib.suppress(OSError):
            self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._file, 0, os.SEEK_END)

    def close(self) -> None:
        """Read no more."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def why_ended(self, pid: int) -> KernelWord | None:
        """Return what explains a process's end; None: nothing does.

        Args:
            pid: of the process. Errors of a GPU without one, and of the machine, speak of any.
        """
        self._told.extend(self._new())
        now_s = time.clock_gettime(time.CLOCK_MONOTONIC)
        newest_first = [*reversed(self._told)]
        its_own = [
            KernelWord(one.text, of_it=True)
            for one in newest_first
            if self._knows_numbers and one.process == pid
        ]
        nobodys = [
            KernelWord(one.text, of_it=False)
            for one in newest_first
            if one.process is None and now_s - one.since_boot_s < _FRESH_S
        ]
        return next(iter([*its_own, *nobodys]), None)

    def _new(self) -> list[_Record]:
        records: list[_Record] = []
        while self._file is not None:
            try:
                record = os.read(self._file, _RECORD_BYTES)
            except OSError as error:
                if error.errno == errno.EPIPE:  # some were overwritten before they were read
                    continue
                break
            if not record:
                break
            if told := _read(record.decode(errors="replace")):
                records.append(told)
        return records


def numbers_are_hosts() -> bool:
    """Return whether this process's number, and its children's, are those of the host."""
    try:
        return str(Path("/proc/self/ns/pid").readlink()) == _HOSTS_NUMBERS
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class _Record:
    """One that explains a process's end; `process`: whose, None: it may be anybody's."""

    since_boot_s: float
    process: int | None
    text: str


def _read(record: str) -> _Record | None:
    """Read "priority,number,microseconds,flags;text", and lines that begin with a space."""
    head, _, rest = record.partition(";")
    text = rest.partition("\n")[0]
    found = _KILLED.search(text) or _OF_A_GPU.search(text)
    if found is None and _OF_THE_MACHINE.search(text) is None:
        return None
    process = int(found[1]) if found is not None and found[1] else None
    return _Record(int(head.split(",")[2]) / 1e6, process, text)
