"""What a measured system leaves in shared memory when it is killed, as every run ends."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from castor_runtime.arena.segments import PREFIX, SHARED_MEMORY


def remove_left_since(began_s: float, folder: Path = SHARED_MEMORY) -> list[str]:
    """Remove this user's files in shared memory that a run made, and no process maps any more.

    Castor's own are left to `castor_runtime.arena.remove_dead`.

    Args:
        began_s: when the run began, of CLOCK_REALTIME.
        folder: of the files.

    Returns:
        Their names.
    """
    mapped = _mapped(folder)
    removed: list[str] = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            found = path.stat()
            own = found.st_uid == os.getuid() and path.is_file()
            in_use = path.name in mapped or path.name.startswith(PREFIX)
            if own and not in_use and found.st_ctime >= began_s:
                path.unlink()
                removed.append(path.name)
    return removed


def _mapped(folder: Path) -> set[str]:
    names: set[str] = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):  # it has ended meanwhile, or is another user's
            lines = maps.read_text().splitlines()
            names |= {line.rpartition("/")[2] for line in lines if f" {folder}/" in line}
    return names
