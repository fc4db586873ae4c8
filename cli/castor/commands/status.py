"""castor status: how a job is doing."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live

from castor.commands.reach import NOBODY, Reach, reaches_a_job, refuse_store_alone
from castor.commands.reading import read_option
from castor_configs.errors import InputError

ASK_AGAIN_S = 30.0
"""While nothing fails, a thousand agents are not asked at each look what has happened."""
LINES_OF_A_FILE = 40
"""Lines of a look that is printed where there is no screen."""
SILENT_READS = 5
"""So often in a row a run's store may not answer: its own one goes before its result comes."""


@reaches_a_job
def status(
    context: typer.Context,
    run: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run folder; default: newest under out/.")
    ] = None,
    *,
    job: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Or any job, by its name and --store; with --secret or "
            "certificates its agents are asked, too.",
        ),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="Keep up to date until Ctrl-C: the sick first, as far as they fit."
        ),
    ] = False,
    interval: Annotated[
        str, typer.Option(metavar="TIME", help="With --watch: from one look to the next.")
    ] = "1s",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    **_flags: Any,
) -> None:
    """Show a job's machines, leases, root, checkpoints by shard and holder, and recoveries.

    Example: castor status --watch
    """
    from castor_runtime.launcher.run_folder import RunFolder, newest_run

    given = context.params
    refuse_store_alone(context)
    folder: RunFolder | None = None
    if job is not None:
        reach = Reach.of(job, given, asks=False)
    else:
        folder = RunFolder(run) if run is not None else newest_run()
        record = folder.run()
        if _has_ended(folder):
            _print_ended(folder, as_json)
            return
        reach = Reach.of(record.job, {**given, **NOBODY, "store": record.store}, asks=False)
    if not watch:
        _print(_Job(reach, folder).look(), as_json)
        return
    with contextlib.suppress(KeyboardInterrupt):
        _watch(_Job(reach, folder), _interval_s(interval), as_json)


def _interval_s(written: str) -> float:
    from castor_configs.quantities import parse_seconds

    interval_s = read_option(parse_seconds, written, "--interval")
    if interval_s <= 0:
        raise InputError("expected more than 0", key="--interval")
    return interval_s


def _watch(job: _Job, interval_s: float, as_json: bool) -> None:
    from castor_runtime.launcher.status_view import Pace, screenful

    console = Console(highlight=False, markup=False)
    pace, folder = Pace(), job.folder
    with contextlib.ExitStack() as stack:
        live = None
        if not as_json and console.is_terminal:
            live = stack.enter_context(Live(console=console, auto_refresh=False, screen=False))
        silent = 0
        while folder is None or not _has_ended(folder):
            try:
                document = job.look()
            except InputError:
                silent += 1
                if folder is None or silent > SILENT_READS:
                    raise
            else:
                silent = 0
                if as_json:
                    _print(document, as_json)
                else:
                    lines = LINES_OF_A_FILE if live is None else console.height - 1
                    told = pace.look(document, time.monotonic())
                    view = screenful(document, (console.width, lines), told)
                    live.update(view, refresh=True) if live is not None else console.print(view)
                # While its launcher lives, its result is still to come.
                over = document["phase"] in ("finished", "failed", "stopped")
                if over and (folder is None or not folder.is_live()):
                    break
            time.sleep(interval_s)
    if folder is not None and _has_ended(folder):
        _print_ended(folder, as_json)
    elif not as_json:
        _print_result(console, document)


def _has_ended(folder: Any) -> bool:
    return bool(folder.result_file.exists() and not folder.is_live())


class _Job:
    """A job that is looked at, once or again and again.

    Args:
        reach: how it is reached.
        folder: its run folder, if it runs on this machine.
    """

    def __init__(self, reach: Reach, folder: Any) -> None:
        self.folder = folder
        self._reach = reach
        self._told: Any = None
        self._told_of: tuple[int, str] | None = None
        self._told_s = 0.0

    def look(self) -> dict[str, Any]:
        """Return its status.

        Raises:
            InputError: it cannot be reached, or is not there.
        """
        return self._reach.run(self._read)

    async def _read(self, store: Any, view: Any) -> dict[str, Any]:
        from castor_runtime.launcher.accounts import read_accounts
        from castor_runtime.launcher.status import status_document
        from castor_runtime.launcher.told_result import told_result

        if self.folder is not None:  # it tells all that the agents would
            return status_document(view, self.folder, await store.state())
        plan = view.plan
        stands = None if plan is None else (plan.generation, str(plan.phase))
        if self._told is None or stands != self._told_of or self._is_old():
            self._told = await read_accounts(store, view, self._reach.credentials)
            self._told_of, self._told_s = stands, time.monotonic()
        document = status_document(view, None, await store.state(), self._told)
        over = plan is not None and plan.is_over
        result = told_result(view, self._told).to_json() if over else None
        # As result.json has it: of lists, not of tuples.
        return document | {"result": json.loads(json.dumps(result))}

    def _is_old(self) -> bool:
        return time.monotonic() - self._told_s > ASK_AGAIN_S


def _print(document: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(document, allow_nan=False))
        return
    from castor_runtime.launcher.status_view import status_view

    console = Console(highlight=False, markup=False)
    console.print(status_view(document))
    _print_result(console, document)


def _print_result(console: Console, document: dict[str, Any]) -> None:
    if result := document.get("result"):
        from castor_records.result import Result
        from castor_runtime.launcher.screen import print_summary

        print_summary(console, Result.of_json(result))


def _print_ended(folder: Any, as_json: bool) -> None:
    from castor_runtime.launcher.screen import print_summary

    if as_json:
        text = folder.result_file.read_text(encoding="utf-8")
        typer.echo(json.dumps(json.loads(text)))
    else:
        print_summary(Console(highlight=False, markup=False), folder.result())
