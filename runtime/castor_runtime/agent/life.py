"""Which life of an agent this is, and whether another one lives: by this machine's own word."""

from __future__ import annotations

import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path

from castor_policy.agents.agent_report import AgentReport, Life
from castor_policy.agents.own_report import Sign
from castor_runtime.processes import is_alive, started_ticks

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def own_life() -> Life:
    """Return where and since when this process runs."""
    pid = os.getpid()
    return Life(
        host=socket.gethostname(),
        boot_id=_boot_id(),
        pid_namespace=_pid_namespace(),
        pid=pid,
        started_ticks=started_ticks(pid) or 0,
        since_ns=time.time_ns(),
    )


def sign_of(life: Life) -> Sign:
    """Say whether that life's process lives: known only on the machine that it runs on.

    Machines are told apart by their kernels' boot ids and process namespaces: names are copied
    with images. A process that may not be looked at is alive.
    """
    here = (_boot_id(), _pid_namespace())
    if not all(here) or (life.boot_id, life.pid_namespace) != here or life.pid <= 0:
        return Sign.UNKNOWN
    try:
        os.kill(life.pid, 0)
    except ProcessLookupError:
        return Sign.DEAD
    except PermissionError:
        return Sign.ALIVE
    # The number may be another process's by now; a zombie holds nothing.
    same = started_ticks(life.pid) == life.started_ticks
    return Sign.ALIVE if same and is_alive(life.pid) else Sign.DEAD


def whereabouts(report: AgentReport) -> str:
    """Say where and since when the agent of `report` is alive."""
    life = report.life
    since = datetime.fromtimestamp(life.since_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"on {life.host or 'an unnamed host'} ({report.address}, pid {life.pid}) since {since}"


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""
