"""castor report: one page that tells a run: what failed, what it cost, how it was recovered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from castor.commands.overwriting import Overwrite
from castor_configs.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castor_analysis.recovery.moments import Moment
    from castor_analysis.report.page import Heading
    from castor_analysis.report.story import Story
    from castor_records.events.event import Entry, Event
    from castor_records.run_files import RunFiles


def report(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN]", help="Run folder; default: newest under out/.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="The page; default RUN/report.html."),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="BANDWIDTH",
            help="What all machines together get from storage, for the comparison; default: as "
            "the run wrote its persistent checkpoints, else 20Gbps.",
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a run's report as one HTML page: where its time went, each recovery by its phases.

    It also says what checkpoints to storage had cost in the same run, by the simulator. The run
    may be under way: then it is told as far as it is.

    Example: castor report out/train-gpt2 -o report.html
    """
    from castor_analysis.report import read_story, report_page, storage_bill
    from castor_configs.atomic import output_file, write_text
    from castor_records.run_files import RunFiles

    storage_bps = _bandwidth(storage)
    folder = RunFiles(run if run is not None else _newest())
    record = folder.run()
    logs = [folder.events_file] if folder.events_file.is_file() else folder.event_logs()
    page = out or folder.path / "report.html"
    if page.suffix != ".html":
        raise InputError(f"expected .html, not {page.suffix or page}", key="--out")
    output_file(page, key="--out", overwrite=overwrite, reads=logs)
    entries = _entries(folder, logs)
    ranks = record.nodes * record.ranks_per_node
    copies = len(record.replicas[0]) if record.replicas else 1
    try:
        story = read_story(entries, machines=record.nodes, ranks=ranks, replicas=copies)
    except ValueError as error:
        raise InputError(str(error), file=folder.path) from error
    text = report_page(
        _heading(folder), story, storage_bill(story, storage_bps), _told(entries, story)
    )
    write_text(page, text)
    typer.echo(f"wrote {page}", err=True)


def _bandwidth(written: str | None) -> int | None:
    from castor_configs.quantities import parse_bps

    if written is None:
        return None
    try:
        found = parse_bps(written)
    except ValueError as error:
        raise InputError(str(error), key="--storage") from error
    if found <= 0:
        raise InputError("expected more than 0", key="--storage")
    return found


def _newest() -> Path:
    from castor_runtime.launcher.run_folder import newest_run

    return newest_run().path


def _entries(folder: RunFiles, logs: Sequence[Path]) -> list[Entry[Event]]:
    from castor_records.event_log import events_of_run, merge

    if folder.events_file.is_file():
        return events_of_run(folder)
    return merge(log for log in logs if log.is_file())


def _heading(folder: RunFiles) -> Heading:
    from datetime import UTC, datetime

    from castor_analysis.report.page import Heading
    from castor_policy.version import __version__

    record = folder.run()
    outcome, reason = "running", ""
    notes: tuple[str, ...] = ()
    if folder.result_file.is_file():
        result = folder.result()
        outcome, reason = result.outcome, result.reason
        notes = tuple(str(one["message"]) for one in result.warnings)
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    began = datetime.fromtimestamp(record.started_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M UTC")
    origin = (
        f"Run {record.run or 'unknown'} of {record.job}, begun {began}; read from {folder.path} by "
        f"castor report, Castor {__version__}, {made}."
    )
    return Heading(job=record.job, outcome=outcome, reason=reason, origin=origin, notes=notes)


def _told(entries: Sequence[Entry[Event]], story: Story) -> list[list[Moment]]:
    """Return what happened in each recovery, where a launcher's log says who took part."""
    from castor_analysis.recovery.moments import moments
    from castor_analysis.recovery.timeline import read_recoveries

    try:
        found = [moments(one) for one in read_recoveries(entries)]
    except ValueError:
        return []
    return found if len(found) == len(story.recoveries) else []
