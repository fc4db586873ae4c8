"""Which event logs a run's folder, or copies of its agents' folders, stand for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from castor_configs.errors import InputError

RunPaths = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[RUN]...",
        help="Run folder, or event logs of all its agents; default: newest under out/.",
        show_default=False,
    ),
]


def named_or_newest(run: list[Path] | None) -> list[Path]:
    """Return the paths that were named, or the newest run's folder.

    Raises:
        InputError: none was named, and there is none.
    """
    from castor_runtime.launcher.run_folder import newest_run

    return run or [newest_run().path]


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
