"""A control group whose memory is limited, so that the kernel kills whoever takes more."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from castor_runtime.agent.kernel_log import numbers_are_hosts

_ROOT = Path("/sys/fs/cgroup")
_LIMITS = (("memory.limit_in_bytes", _ROOT / "memory"), ("memory.max", _ROOT))
"""Of both versions of control groups, and where they are mounted."""


def reason_without() -> str:
    """Return why none can be made here, or why the kernel's log cannot be read; "": both can."""
    if not numbers_are_hosts():
        return "takes the host's process numbers, which the kernel's log has"
    try:
        os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK))
        with memory_cgroup(1 << 30):
            return ""
    except OSError as error:
        return f"takes root, /dev/kmsg and a memory control group: {error}"


@contextlib.contextmanager
def memory_cgroup(limit_bytes: int) -> Iterator[Path]:
    """Yield the file that a process writes its number into to be in it."""
    for limit, root in _LIMITS:
        group = root / f"castor-test-{secrets.token_hex(4)}"
        with contextlib.suppress(OSError):
            group.mkdir()
        if (group / limit).exists():
            break
        with contextlib.suppress(OSError):
            group.rmdir()
    else:
        raise FileNotFoundError("no memory control group can be made")
    try:
        (group / limit).write_text(str(limit_bytes))
        yield group / "cgroup.procs"
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()
