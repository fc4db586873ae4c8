"""What a measured system leaves in shared memory when it is killed, as every run ends."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from castor_runtime.arena.segments import PREFIX, SHARED_MEMORY

_AGAIN_S = 0.2


def remove_left_since(
    began_s: float, folder: Path = SHARED_MEMORY, patience_s: float = 10.0
) -> list[str]:
    """Remove this user's files in shared memory that a run made, and no process maps any more.

    A killed process maps them until it is gone, which takes a while with much memory: it is waited
    for. Castor's own files are left to `castor_runtime.arena.remove_dead`.

    Args:
        began_s: when the run began, of CLOCK_REALTIME.
        folder: of the files.
        patience_s: how long to wait for files that are mapped.

    Returns:
        Their names.
    """
    give_up_s = time.monotonic() + patience_s
    removed: list[str] = []
    while _remove_unmapped(began_s, folder, removed) and time.monotonic() < give_up_s:
        time.sleep(_AGAIN_S)
    return removed


def _remove_unmapped(began_s: float, folder: Path, removed: list[str]) -> bool:
    """Remove what nobody maps, and add it to `removed`; say whether something else is left."""
    mapped = _mapped(folder)
    left = False
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            found = path.stat()
            own = found.st_uid == os.getuid() and path.is_file()
            if not own or path.name.startswith(PREFIX) or found.st_ctime < began_s:
                continue
            if path.name in mapped:
                left = True
            else:
                path.unlink()
                removed.append(path.name)
    return left


def _mapped(folder: Path) -> set[str]:
    names: set[str] = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):  # it has ended meanwhile, or is another user's
            lines = maps.read_text().splitlines()
            names |= {line.rpartition("/")[2] for line in lines if f" {folder}/" in line}
    return names
