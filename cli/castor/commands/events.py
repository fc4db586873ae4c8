"""castor events: what happened in a job, told by all its agents, in the order in which it did."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from castor.commands.agent_colours import AgentColours
from castor.commands.logs import Follow, JobOrRun, RunDir, local_run
from castor.commands.reach import Reach, name_unreached, name_untold, reaches_a_job

if TYPE_CHECKING:
    from castor_policy.store import Store
    from castor_runtime.launcher.job_view import JobView
    from castor_runtime.launcher.log_following import EventStream, Told
    from castor_runtime.launcher.log_reading import Line

_LOG = "events.jsonl"


@reaches_a_job
def events(
    context: typer.Context,
    job: JobOrRun = None,
    *,
    run: RunDir = None,
    every: Annotated[
        bool,
        typer.Option("--all", help="Every iteration and checkpoint, too: whole logs are fetched."),
    ] = False,
    follow: Follow = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    **_flags: Any,
) -> None:
    """Print what happened in a job: failures, plans, recoveries, roots, the store's troubles.

    Where hosts' clocks differ, times are those of machine 0's; --json says of each event how far
    its agent's clock is from that, and how sure that is. Without JOB it is the newest run under
    out/ on this machine.

    Example: castor events gpt2 --store etcd://10.0.0.1:2379 --secret FILE -f
    """
    from castor_runtime.launcher.log_following import EventStream

    stream = EventStream()
    printer = _Printer(as_json=as_json, every=every)
    with contextlib.suppress(KeyboardInterrupt):
        if job is None:
            asyncio.run(_of_folder(local_run(run), stream, printer, follow=follow))
            return
        reach = Reach.of(job, context.params, asks=follow or every)

        async def ask(store: Store, view: JobView) -> None:
            await _of_job(reach, store, view, stream, printer, follow=follow)

        reach.run(ask)


async def _of_job(
    reach: Reach,
    store: Store,
    view: JobView,
    stream: EventStream,
    printer: _Printer,
    *,
    follow: bool,
) -> None:
    from castor_runtime.launcher.accounts import read_accounts
    from castor_runtime.launcher.log_following import follow_job
    from castor_runtime.launcher.log_reading import JobLogs

    with JobLogs(lambda name: name == _LOG, None if printer.every else 0) as read:
        early: list[Line] = []
        if follow or printer.every:
            assert reach.credentials is not None, "they were asked for"
            await follow_job(store, view, reach.credentials, read, early.extend, once=True)
        accounts = await read_accounts(store, view, reach.credentials)
        name_untold(reach, view, accounts)
        past = [*stream.past(accounts), *stream.new(early)]
        printer.told(sorted(past, key=lambda one: one.entry.time_ns))
        if follow:
            assert reach.credentials is not None, "they were asked for"
            named = set(accounts.unreached)

            def tell(lines: list[Line]) -> None:
                printer.told(stream.new(lines))
                name_unreached(read.unreached, named)

            await follow_job(store, view, reach.credentials, read, tell, once=False)


async def _of_folder(folder: Any, stream: EventStream, printer: _Printer, *, follow: bool) -> None:
    from castor_runtime.launcher.log_following import follow_folder
    from castor_runtime.launcher.log_reading import JobLogs

    with JobLogs(lambda name: name == _LOG) as read:
        launcher = _launcher_lines(folder)

        def tell(lines: list[Line]) -> None:
            printer.told(stream.new([*launcher, *lines]))
            launcher.clear()

        await follow_folder(folder, read, tell, once=not follow)


def _launcher_lines(folder: Any) -> list[Line]:
    """Return what the launcher has told: what it injected, and what it has asked for."""
    from castor_runtime.launcher.log_reading import Line

    with contextlib.suppress(FileNotFoundError):
        text = folder.launcher_events.read_text(encoding="utf-8")
        return [Line("launcher", _LOG, line) for line in text.splitlines()]
    return []


class _Printer:
    """Prints events: a line for people, or JSON."""

    def __init__(self, *, as_json: bool, every: bool) -> None:
        self.every = every
        self._as_json = as_json
        self._console = Console(highlight=False, markup=False, soft_wrap=True, emoji=False)
        self._colours = AgentColours()
        self._width = 0

    def told(self, told: list[Told]) -> None:
        """Print them, in their order."""
        self._width = max([self._width, *(len(one.agent) for one in told)])
        for one in told:
            line = self._line(one)
            if line is not None:
                self._print(one, *line)
        sys.stdout.flush()

    def _line(self, told: Told) -> tuple[str, str] | None:
        from castor_runtime.launcher.event_lines import line_of

        event = told.entry.event
        line = line_of(event)
        if line is None and self.every:
            fields = ", ".join(f"{name} {value}" for name, value in event.fields().items())
            return f"{event.kind}: {fields}", "dim"
        if line is None and self._as_json:
            return "", ""
        return line

    def _print(self, told: Told, text: str, style: str) -> None:
        if self._as_json:
            sys.stdout.write(json.dumps(told.to_json()) + "\n")
            return
        at = f"{told.entry.time_ns / 1e9:10.3f} s  "
        who = f"{told.agent:{self._width}}  "
        if not self._console.is_terminal:
            sys.stdout.write(f"{at}{who}{text}\n")
            return
        own = self._colours.of(told.agent)
        self._console.print(Text.assemble(at, (who, own), (text, style)))
