"""Which event logs a run's folder, or copies of its agents' folders, stand for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from castor_configs.errors import InputError


def event_logs(paths: Sequence[Path]) -> list[Path]:
    """Return the event logs that the paths stand for: files, run folders, agents' folders.

    Raises:
        InputError: a path has none.
    """
    from castor_records.run_files import RunFiles

    logs: list[Path] = []
    for path in paths:
        if path.is_file():
            logs.append(path)
            continue
        # A run that has ended has one merged log; a live one still has those of its agents.
        folder = RunFiles(path)
        merged, live = folder.events_file, folder.event_logs()
        found = [merged] if merged.is_file() else [log for log in live if log.is_file()]
        if not found:
            raise InputError("has no event log: name a run folder or an events.jsonl", file=path)
        logs += found
    return logs
