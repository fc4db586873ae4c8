"""Hostfiles as DeepSpeed and Open MPI have them: a line a host, `node-1 slots=8`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from castor_configs.errors import InputError

_LINE = re.compile(r"(?P<address>[^\s#=]+)(?:\s+slots=(?P<slots>[1-9]\d*))?")


@dataclass(frozen=True, slots=True)
class Hostfile:
    """The hosts of a job.

    Attributes:
        hosts: as ssh takes them (`user@node-1`, a name of ~/.ssh/config), in order.
        slots: trainers on each; None where no line says.
    """

    hosts: tuple[str, ...]
    slots: int | None


def read_hostfile(file: Path) -> Hostfile:
    """Return what a hostfile says.

    Raises:
        InputError: a line is none, a host comes twice, or their slots differ.
        OSError: it cannot be read.
    """
    hosts: dict[str, int | None] = {}
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        line = text.partition("#")[0].strip()
        if not line:
            continue
        match = _LINE.fullmatch(line)
        where = f"{file}:{number}"
        if match is None or match["address"].startswith("-"):
            raise InputError(f"{where}: expected HOST slots=N, not {line!r}", key="--hostfile")
        if match["address"] in hosts:
            raise InputError(f"{where}: {match['address']} comes twice", key="--hostfile")
        hosts[match["address"]] = int(match["slots"]) if match["slots"] else None
    if not hosts:
        raise InputError(f"{file} names no host", key="--hostfile")
    slots = set(hosts.values())
    if len(slots) > 1:
        raise InputError(
            f"{file}: every host of a job has as many trainers, so its lines need the same slots=",
            key="--hostfile",
        )
    return Hostfile(tuple(hosts), slots.pop())
