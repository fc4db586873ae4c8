"""Processes by the kernel's own word (/proc): who lives, who descends from whom, who is killed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Final

PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_STAT_BYTES: Final = 4096  # 52 numbers and a name


def die_with_parent(parent: int) -> None:
    """Have the kernel send this process SIGKILL when `parent`, which made it, dies.

    Linux's prctl(2). What it cannot see is a parent that died before the call, so that is looked
    at afterwards.
    """
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of all processes below whose own parent dies, so that they can be reaped.

    A container's first process often reaps nobody.
    """
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the third (state) on; None if there is none."""
    # Read twenty times a second of each trainer: a Path and a text file take four times as long.
    try:
        file = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return None
    try:
        text = os.read(file, _STAT_BYTES)
    except ProcessLookupError:
        return None
    finally:
        os.close(file)
    # The second field, the name, may hold spaces and parentheses, and be in any encoding.
    return text.rpartition(b")")[2].decode("ascii").split()


def memory_fields(path: Path) -> dict[str, int]:
    """Return in bytes what a file of /proc (status, meminfo, ...) gives as "Name:   123 kB".

    Raises:
        OSError: it is not there, or is another user's.
    """
    lines = (line.partition(":") for line in path.read_text(encoding="utf-8").splitlines())
    return {name: int(rest.split()[0]) * 1024 for name, _, rest in lines if rest.endswith(" kB")}


def is_alive(pid: int) -> bool:
    """Say whether `pid` runs or is stopped; a zombie is dead.

    Of a killed process the first thread is often a zombie already while others still hold its
    files and locks: such a process is alive.
    """
    fields = _stat(pid) if pid > 0 else None
    return fields is not None and (fields[0] not in ("Z", "X") or int(fields[17]) > 1)


def started_before(pid: int, time_s: float) -> bool:
    """Say whether `pid` lives and began before `time_s` (CLOCK_REALTIME).

    Whoever reads a process's number in a file asks this with the file's time: a number that was
    given to another process since fails.
    """
    fields = _stat(pid) if pid > 0 else None
    if fields is None or fields[0] in ("Z", "X"):
        return False
    with Path("/proc/stat").open(encoding="ascii") as lines:
        boot_s = next(float(line.split()[1]) for line in lines if line.startswith("btime"))
    # btime is in whole seconds, the start in ticks: neither may cost a true answer.
    return boot_s + int(fields[19]) / _TICKS_PER_S <= time_s + 2.0


def started_ticks(pid: int) -> int | None:
    """Return when `pid` began, in clock ticks since the machine's start; None if it is gone."""
    fields = _stat(pid)
    return None if fields is None else int(fields[19])


def activity(pid: int) -> tuple[float | None, bool]:
    """Return the processor time that all threads of `pid` have used, and whether it is stopped.

    None and False once it is gone. Stopped is it by a signal or a debugger.
    """
    fields = _stat(pid) if pid > 0 else None
    if fields is None:
        return None, False
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S, fields[0] in ("T", "t")


def is_stopped(pid: int) -> bool:
    """Say whether `pid` is stopped, by a signal or a debugger; False once it is gone."""
    return activity(pid)[1]


def descendants(pid: int) -> list[int]:
    """Return the processes below `pid`, parents first; none if it is dead."""
    children: dict[int, list[int]] = {}
    for entry in sorted(Path("/proc").iterdir()):
        if entry.name.isdigit() and (fields := _stat(int(entry.name))) is not None:
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = list(children.get(pid, ()))
    for one in found:  # grows while it is walked: breadth first
        found += children.get(one, ())
    return found


def send(pids: Iterable[int], number: signal.Signals) -> list[int]:
    """Send a signal to each of `pids` that still lives; return those reached."""
    reached = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            reached.append(pid)
    return reached


def kill_tree(pid: int) -> list[int]:
    """Kill `pid` and all below it, at once: none can act on the death of another.

    All are stopped first, so that no parent sees its child die and starts another; then all are
    killed.
    """
    tree = [pid, *descendants(pid)]
    send(tree, signal.SIGSTOP)
    # A process may have forked before it was stopped.
    tree += [one for one in descendants(pid) if one not in tree]
    return send(tree, signal.SIGKILL)
