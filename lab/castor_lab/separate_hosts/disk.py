"""What a separate host sees of the file system: software that is installed, and a disk of its own.

The computer's files are there, to be read only. Over the places that programs write to lie file
systems in memory, which end with the host. Python and Castor may be installed in a home folder:
such places are kept visible, each at its own path.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108 - each host's own
_FOR_ALL: Final = (SHARED_MEMORY, "/tmp")  # noqa: S108 - the same
OWN: Final = (*_FOR_ALL, "/run", "/var/log", "/var/spool", "/root")
"""Each host's own, empty at its start."""

_KEEP: Final = "/mnt/keep"
_ETC: Final = {
    "hosts": "127.0.0.1 localhost\n",
    "resolv.conf": "",
    "nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
    "shadow": "root:*:20000:0:99999:7:::\n",
}
"""No name leads anywhere but to the host itself, and root enters by a key."""


def installed() -> list[Path]:
    """Return those folders below `OWN` in which Python and what it imports lie."""
    folders = {Path(sys.prefix), Path(sys.base_prefix), *(Path(one) for one in sys.path)}
    found = sorted({one.resolve() for one in folders if one.is_absolute() and one.is_dir()})
    below = [one for one in found if any(Path(own) in one.parents for own in OWN)]
    return [one for one in below if not any(other in one.parents for other in below)]


def first_process(name: str, kept: Sequence[Path]) -> str:
    """Return the shell script that a host's first process runs, as root in namespaces of its own.

    It lays the mounts, makes `/run/up`, and then takes in what its children leave, for ever.

    Args:
        name: of the host.
        kept: folders below `OWN` that stay visible, to be read only.
    """
    lines = ["set -eu", "mount -t tmpfs -o mode=755 own /mnt"]
    for number, folder in enumerate(kept):
        place = shlex.quote(f"{_KEEP}/{number}")
        lines += [f"mkdir -p {place}", f"mount --rbind {shlex.quote(str(folder))} {place}"]
    for path in OWN:
        mode = "1777" if path in _FOR_ALL else "755"
        lines.append(f"mount -t tmpfs -o mode={mode} own {path}")
        for number, folder in enumerate(kept):
            if Path(path) in folder.parents:
                back = shlex.quote(str(folder))
                lines += [f"mkdir -p {back}", f"mount --move {_KEEP}/{number} {back}"]
                lines.append(f"mount -o remount,bind,ro {back}")
    for file, text in _ETC.items():
        own = f"/mnt/{file}"
        lines += [f"printf %s {shlex.quote(text)} > {own}", f"mount --bind {own} /etc/{file}"]
    lines += [
        # Last: mount points are made before. Mounts that lie on it stay as they are.
        "mount -o remount,bind,ro /",
        f"hostname {shlex.quote(name)}",
        "touch /run/up",
        # A shell takes in whatever is left to it while it waits.
        "while :; do sleep 1000 & wait $!; done",
    ]
    return "\n".join(lines)


def environment() -> dict[str, str]:
    """Return the environment of a host's processes: this Python's programs come first."""
    path = os.pathsep.join((str(Path(sys.prefix) / "bin"), os.defpath, "/usr/sbin", "/sbin"))
    return {
        "PATH": path,
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
