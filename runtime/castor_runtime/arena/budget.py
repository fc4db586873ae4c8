"""Is there memory for the checkpoints? Asked before training starts, told in a table."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from castor_configs.errors import InputError
from castor_runtime.arena.layout import PartLayout
from castor_runtime.arena.segments import PREFIX, SHARED_MEMORY
from castor_runtime.processes import memory_fields

_CGROUPS = Path("/sys/fs/cgroup")

_UNITS = ((30, "GiB"), (20, "MiB"), (10, "KiB"))


def available_bytes() -> int:
    """Return the memory that this process may still take: the machine's, or its cgroup's.

    Reclaimable page cache counts as available.
    """
    free = memory_fields(Path("/proc/meminfo"))["MemAvailable"]
    limits = cgroup_free_bytes(Path("/proc/self/cgroup").read_text(), _CGROUPS)
    return min([free, *limits])


def check_budget(
    parts: Sequence[PartLayout],
    *,
    live_note: str,
    limit_bytes: int | None = None,
    held_bytes: int = 0,
    what_fits: Callable[[int], str] = lambda _: "",
    folder: Path = SHARED_MEMORY,
) -> None:
    """See whether `parts` can be held, before any memory is taken.

    Args:
        parts: what is still to be made; what an agent re-attaches to is no part of it.
        live_note: a line on what else needs memory, which goes under the table.
        limit_bytes: most that checkpoints may take here; None or 0: what there is.
        held_bytes: what is in memory already, which counts against `limit_bytes` only.
        what_fits: given the bytes that there are, returns what to say of a choice that fits them.
        folder: where the machine's shared memory is.

    Raises:
        InputError: they do not fit; the error shows what needs how much, and what there is.
    """
    rows = [(_row(f"part of rank {part.rank}", part.buffers), part.segment_bytes) for part in parts]
    _require(rows, live_note, limit_bytes, held_bytes, folder, what_fits)


def check_growth(
    rank: int,
    more_bytes: int,
    *,
    buffers: int,
    held_bytes: int,
    limit_bytes: int | None = None,
    folder: Path = SHARED_MEMORY,
) -> None:
    """See whether the metadata of a part may take more memory.

    Args:
        rank: whose part.
        more_bytes: what they would take more.
        buffers: of the part.
        held_bytes: what is in memory already, which counts against `limit_bytes` only.
        limit_bytes: most that checkpoints may take here; None or 0: what there is.
        folder: where the machine's shared memory is.

    Raises:
        InputError: it does not fit; the error shows what needs how much, and what there is.
    """
    rows = [(_row(f"state of rank {rank} that grew", buffers), more_bytes)]
    note = "what state_dict() returns for Checkpointer(state=...), or the model's buffers, grew"
    _require(rows, note, limit_bytes, held_bytes, folder)


def _row(what: str, buffers: int) -> str:
    return f"{what}, {buffers} buffer{'' if buffers == 1 else 's'}"


def _require(
    rows: list[tuple[str, int]],
    note: str,
    limit_bytes: int | None,
    held_bytes: int,
    folder: Path,
    what_fits: Callable[[int], str] = lambda _: "",
) -> None:
    needed = sum(size_bytes for _, size_bytes in rows)
    promised = _promised_bytes(folder)
    status = os.statvfs(folder)
    sources = [
        ("memory available", available_bytes() - promised),
        (f"room in {folder}", status.f_bavail * status.f_frsize - promised),
    ]
    if limit_bytes:
        sources.append(("left of the limit", limit_bytes - held_bytes))
    short = [name for name, there in sources if there < needed]
    if not short:
        return
    rows = [*rows, ("needed", needed)]
    rows += [(name + (", too little" if name in short else ""), there) for name, there in sources]
    if promised:
        rows.append(("(promised to other segments)", promised))
    width = max(len(name) for name, _ in rows)
    # One unit for all, that of what is needed: rows are there to be compared.
    exponent, unit = next(u for u in _UNITS if needed >= 1 << u[0] or u is _UNITS[-1])
    table = "\n".join(
        f"  {name:<{width}}  {size / 2**exponent:12.3f} {unit}" for name, size in rows
    )
    raise InputError(
        f"checkpoint memory does not fit on this machine:\n{table}\n  {note}\n"
        "hold fewer replicas, use fewer ranks a machine, or give it more memory"
        + what_fits(min(there for _, there in sources))
    )


def shown(size_bytes: int) -> str:
    """Return a size as the tables of this module show it."""
    exponent, unit = next(u for u in _UNITS if size_bytes >= 1 << u[0] or u is _UNITS[-1])
    return f"{size_bytes / 2**exponent:.3f} {unit}"


def cgroup_free_bytes(own: str, root: Path) -> list[int]:
    """Return what each limited cgroup above a process has left, by versions 2 and 1.

    Args:
        own: the process's /proc/PID/cgroup.
        root: where the cgroups are mounted.
    """
    free: list[int] = []
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = top / path.lstrip("/")
        for level in (folder, *folder.parents):
            if level == top.parent:
                break
            left = _left_bytes(level, *names)
            if left is not None:
                free.append(left)
    return free


def _promised_bytes(folder: Path) -> int:
    """Return what segments were made for but have not touched: agents beside us may be at it."""
    promised = 0
    for entry in os.scandir(folder):
        if entry.name.startswith(PREFIX) and entry.is_file(follow_symlinks=False):
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            promised += max(0, status.st_size - 512 * status.st_blocks)
    return promised


def _left_bytes(folder: Path, limit: str, usage: str, reclaimable: str) -> int | None:
    try:
        most = (folder / limit).read_text().strip()
        used = int((folder / usage).read_text())
        statistics = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return None
    if most == "max":
        return None
    cached = sum(int(line.split()[1]) for line in statistics if line.split()[0] == reclaimable)
    return max(0, int(most) - used + cached)
