"""castor report: one page that tells a run: what failed, what it cost, how it was recovered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from castor.commands.overwriting import Overwrite
from castor.commands.reach import Reach, reaches_a_job, refuse_store_alone
from castor.commands.reading import read_option
from castor.commands.run_logs import RunPaths, event_logs, named_or_newest
from castor_configs.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castor_analysis.recovery.moments import Moment
    from castor_analysis.report.page import Heading
    from castor_analysis.report.story import Story
    from castor_policy.store import Store
    from castor_records.events.event import Entry, Event
    from castor_runtime.launcher.job_view import JobView


@reaches_a_job
def report(
    context: typer.Context,
    run: RunPaths = None,
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
    *,
    job: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of any job under way, by its name, --store, --secret."),
    ] = None,
    **_flags: Any,
) -> None:
    """Write a run's report as one HTML page: where its time went, each recovery by its phases.

    It also says what checkpoints to storage had cost in the same run, by the simulator. The run
    may be under way: then it is told as far as it is. Of a job without a run folder that has
    ended, name the events.jsonl of its agents, copied from their hosts.

    Example: castor report out/train-gpt2 -o report.html
    """
    from castor_analysis.report import read_story, report_page, storage_bill
    from castor_configs.atomic import output_file, write_text

    storage_bps = _bandwidth(storage)
    refuse_store_alone(context)
    if job is not None and run:
        raise InputError("is a job's own name, and RUN is another run: give one", key="--job")
    paths = [] if job is not None else named_or_newest(run)
    logs = event_logs(paths)
    page = out or (paths[0] / "report.html" if len(paths) == 1 and paths[0].is_dir() else None)
    if page is None:
        raise InputError("say where the page goes", key="--out")
    if page.suffix != ".html":
        raise InputError(f"expected .html, not {page.suffix or page}", key="--out")
    output_file(page, key="--out", overwrite=overwrite, reads=logs)
    if job is not None:
        entries, heading = _told_by_agents(Reach.of(job, context.params))
    else:
        entries, heading = _read(paths, logs)
    try:
        story = read_story(entries)
    except ValueError as error:
        raise InputError(str(error), file=paths[0] if paths else None) from error
    text = report_page(heading, story, storage_bill(story, storage_bps), _moments(entries, story))
    write_text(page, text)
    typer.echo(f"wrote {page}", err=True)


def _told_by_agents(reach: Reach) -> tuple[Sequence[Entry[Event]], Heading]:
    """Read the logs of a job's agents over the network."""
    from castor_analysis.report.page import Heading
    from castor_runtime.launcher.accounts import read_accounts
    from castor_runtime.launcher.told_result import told_result
    from castor_runtime.launcher.whole_logs import read_whole_logs

    async def ask(store: Store, view: JobView) -> tuple[Sequence[Entry[Event]], Heading]:
        assert reach.credentials is not None, "they were asked for"
        whole = await read_whole_logs(store, view, reach.credentials)
        result = told_result(view, await read_accounts(store, view, None))
        return whole.entries, Heading(
            job=reach.job,
            outcome=result.outcome,
            reason=result.reason,
            origin=_origin(reach.job, result.run, "its agents"),
            notes=whole.notes,
        )

    return reach.run(ask)


def _read(paths: Sequence[Path], logs: Sequence[Path]) -> tuple[list[Entry[Event]], Heading]:
    """Read a run's folder, or logs that were copied together."""
    from castor_analysis.report.page import Heading
    from castor_records.event_log import events_of_run, merge
    from castor_records.run_files import RunFiles

    folder = RunFiles(paths[0])
    if len(paths) > 1 or not folder.run_file.is_file():
        names = ", ".join(str(path) for path in paths)
        title = f"A run, by {len(logs)} event logs" if len(logs) > 1 else "A run, by its event log"
        heading = Heading(job=title, outcome="", reason="", origin=_origin("", "", names))
        return merge(logs), heading
    record = folder.run()
    heading = Heading(
        job=record.job,
        outcome="running",
        reason="",
        origin=_origin(record.job, record.run, str(folder.path)),
    )
    if folder.result_file.is_file():
        result = folder.result()
        notes = tuple(str(one["message"]) for one in result.warnings)
        heading = replace(heading, outcome=result.outcome, reason=result.reason, notes=notes)
    entries = events_of_run(folder) if folder.events_file.is_file() else merge(logs)
    return entries, heading


def _origin(job: str, run: str, where: str) -> str:
    from datetime import UTC, datetime

    from castor_policy.version import __version__

    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    of = f"Run {run} of {job}, read" if run else "Read"
    return f"{of} from {where} by castor report, Castor {__version__}, {made}."


def _bandwidth(written: str | None) -> int | None:
    from castor_configs.quantities import parse_bps

    if written is None:
        return None
    found = read_option(parse_bps, written, "--storage")
    if found <= 0:
        raise InputError("expected more than 0", key="--storage")
    return found


def _moments(entries: Sequence[Entry[Event]], story: Story) -> list[list[Moment]]:
    """Return what happened in each recovery, where a launcher's log says who took part."""
    from castor_analysis.recovery.moments import moments
    from castor_analysis.recovery.timeline import read_recoveries

    try:
        found = [moments(one) for one in read_recoveries(entries)]
    except ValueError:
        return []
    return found if len(found) == len(story.recoveries) else []
