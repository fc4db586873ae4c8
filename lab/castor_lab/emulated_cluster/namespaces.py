"""Processes and network namespaces: which are in one, and how one enters."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path
from typing import Final

from castor_runtime.processes import is_alive, send

FOLDER: Final = Path("/run/netns")
"""Where `ip netns add` keeps the names of namespaces."""

_CLONE_NEWNET: Final = 0x40000000
_DEATH_S: Final = 10.0


def enter(namespace: str) -> None:
    """Move this thread, and whatever it forks from now on, into a namespace (setns(2)).

    Sockets that are open stay where they were made.

    Raises:
        OSError: there is none of that name, or this process may not enter it.
    """
    # os.setns came with Python 3.12.
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(FOLDER / namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(descriptor, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"cannot enter namespace {namespace}: {os.strerror(number)}")
    finally:
        os.close(descriptor)


def processes_in(*namespaces: str) -> dict[int, str]:
    """Return the live processes whose main thread is in one of `namespaces`: number -> which."""
    wanted = {}
    for namespace in namespaces:
        with contextlib.suppress(FileNotFoundError):
            wanted[(FOLDER / namespace).stat().st_ino] = namespace
    found = {}
    for entry in sorted(Path("/proc").iterdir()):
        if not entry.name.isdigit() or not is_alive(int(entry.name)):
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            inode = (entry / "ns" / "net").stat().st_ino
            if inode in wanted:
                found[int(entry.name)] = wanted[inode]
    return found


def kill_all_in(*namespaces: str) -> list[int]:
    """Kill -9 every process in `namespaces`, wait until they are dead, and return them.

    All are stopped first, so that none sees another die and starts a third.
    """
    killed: list[int] = []
    deadline_s = time.monotonic() + _DEATH_S
    while (found := sorted(processes_in(*namespaces))) and time.monotonic() < deadline_s:
        send(found, signal.SIGSTOP)
        send(found, signal.SIGKILL)
        killed += [pid for pid in found if pid not in killed]
        time.sleep(0.005)
    return killed
