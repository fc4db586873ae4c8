"""castor logs: what a job's trainers and agents say, from all hosts, with a prefix."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from castor.commands.agent_colours import AgentColours
from castor.commands.overwriting import Overwrite
from castor.commands.reach import STDERR, Reach, name_unreached, reaches_a_job
from castor_configs.errors import InputError

if TYPE_CHECKING:
    from castor_policy.store import Store
    from castor_runtime.launcher.accounts import Accounts
    from castor_runtime.launcher.job_view import JobView
    from castor_runtime.launcher.log_reading import JobLogs, Line

TAIL = "20"

_SHOWN = re.compile(r"rank-(\d+)\.log|agent\.log")

Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")]
JobOrRun = Annotated[
    str | None, typer.Argument(metavar="[JOB]", help="Its name, with --store; else see --run.")
]
RunDir = Annotated[
    Path | None,
    typer.Option("--run", metavar="DIR", help="Run folder on this machine, in place of JOB."),
]


@reaches_a_job
def logs(
    context: typer.Context,
    job: JobOrRun = None,
    *,
    run: RunDir = None,
    node: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of this agent alone, by its name.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=0, metavar="R", help="Of this rank alone.")
    ] = None,
    tail: Annotated[
        str, typer.Option(metavar="N", help="The last N lines of each log, or `all`.")
    ] = TAIL,
    follow: Follow = False,
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Copy whole logs, event logs too, to DIR/AGENT/ and print nothing."
        ),
    ] = None,
    overwrite: Overwrite = False,
    **_flags: Any,
) -> None:
    """Print what the trainers and agents of a job say, each line with who said it.

    Without JOB it is the newest run under out/ on this machine. An agent that cannot be reached
    is named, the others are shown.

    Example: castor logs gpt2 --store etcd://10.0.0.1:2379 --secret FILE --rank 3 -f
    """
    from castor_runtime.launcher.log_following import follow_folder, follow_job
    from castor_runtime.launcher.log_reading import JobLogs

    lines = _lines(tail)
    printer = _Printer()

    def wanted(name: str) -> bool:
        match = _SHOWN.fullmatch(name)
        return match is not None and (rank is None or match[1] == str(rank))

    if save is not None:
        if follow or lines != _lines(TAIL):
            raise InputError(
                "copies whole logs, as they are: leave --follow and --tail out", key="--save"
            )
        of_rank = None if rank is None else f"rank-{rank}.log"
        _save(
            context, job, run, node, lambda name: of_rank in (None, name), save, overwrite=overwrite
        )
        return

    with contextlib.suppress(KeyboardInterrupt), JobLogs(wanted, lines) as read:
        if job is None:
            import asyncio

            folder = local_run(run)
            _check_node(node, folder.agent_names())
            tell = _only(node, printer.lines)
            asyncio.run(follow_folder(folder, read, tell, once=not follow))
        else:
            reach = Reach.of(job, context.params)
            assert reach.credentials is not None, "they were asked for"
            credentials = reach.credentials

            async def ask(store: Store, view: JobView) -> None:
                from castor_runtime.launcher.accounts import read_accounts

                left = await read_accounts(store, view, None)
                known = [*view.reports, *left.by_agent, *(view.plan.agents if view.plan else ())]
                _check_node(node, known)
                tell = _told(printer, read)
                await follow_job(store, view, credentials, read, tell, once=not follow, node=node)
                for line in gone(view, left, node):
                    printer.printed = True
                    STDERR.print(f"castor: {line}", style="yellow")

            reach.run(ask)
        if read.unreached and not printer.printed:
            raise typer.Exit(1)
    if not printer.printed:
        STDERR.print("castor: there is no such log yet", style="yellow")


def _save(
    context: typer.Context,
    job: str | None,
    run: Path | None,
    node: str | None,
    wanted: Callable[[str], bool],
    save: Path,
    *,
    overwrite: bool,
) -> None:
    """Copy what agents have logged into a folder."""
    from castor_runtime.launcher.log_reading import FolderReader
    from castor_runtime.launcher.log_saving import Saved, save_logs

    left: list[str] = []
    if job is None:
        folder = local_run(run)
        names = folder.agent_names()
        _check_node(node, names)
        if any(folder.agent(name).resolve() == (save / name).resolve() for name in names):
            raise InputError("is where these logs are: name another place", file=save, key="--save")
        readers = {n: FolderReader(folder.agent(n)) for n in names if node in (None, n)}
        saved = save_logs(readers, save, wanted, overwrite=overwrite)
    else:
        reach = Reach.of(job, context.params)
        credentials = reach.credentials
        assert credentials is not None, "they were asked for"

        async def ask(store: Store, view: JobView) -> Saved:
            import asyncio

            from castor_runtime.launcher.accounts import read_accounts
            from castor_runtime.transport import PeerReader

            assert view.spec is not None, "the store has it"
            accounts = await read_accounts(store, view, None)
            _check_node(node, [*view.reports, *accounts.by_agent])
            left.extend(gone(view, accounts, node))
            readers = {
                name: PeerReader(report.address, credentials, view.spec.run)
                for name, report in view.reports.items()
                if node in (None, name)
            }
            return await asyncio.to_thread(save_logs, readers, save, wanted, overwrite=overwrite)

        saved = reach.run(ask)
    name_unreached(saved.unreached, set())
    for line in left:
        STDERR.print(f"castor: {line}", style="yellow")
    count = sum(map(len, saved.files.values()))
    STDERR.print(f"castor: copied {count} logs of {len(saved.files)} agents into {save}")
    if not count:
        raise typer.Exit(1)


def local_run(run: Path | None) -> Any:
    """Return the run's folder that was named, or the newest."""
    from castor_runtime.launcher.run_folder import RunFolder, newest_run

    folder = RunFolder(run) if run is not None else newest_run()
    folder.run()  # says so if it is none
    return folder


def gone(view: JobView, left: Accounts, node: str | None = None) -> list[str]:
    """Return of each agent that is not there any more where its logs are."""
    return [
        f"{name} is not alive; its logs are on {account.host}, in {account.folder}"
        for name, account in sorted(left.by_agent.items())
        if name not in view.reports and node in (None, name)
    ]


def _lines(tail: str) -> int | None:
    if tail == "all":
        return None
    if not tail.isdecimal():
        raise InputError(f"expected a number of lines, or all, not {tail!r}", key="--tail")
    return int(tail)


def _check_node(node: str | None, known: Any) -> None:
    if node is not None and node not in known:
        names = ", ".join(sorted({name for name in known if name})) or "none"
        raise InputError(f"there is no agent {node!r}; there are {names}", key="--node")


def _only(node: str | None, tell: Callable[[list[Line]], None]) -> Callable[[list[Line]], None]:
    return lambda lines: tell([line for line in lines if node in (None, line.agent)])


def _told(printer: _Printer, read: JobLogs) -> Callable[[list[Line]], None]:
    named: set[str] = set()

    def tell(lines: list[Line]) -> None:
        printer.lines(lines)
        name_unreached(read.unreached, named)

    return tell


class _Printer:
    """Prints lines with who said them, in an agent's colour on a terminal."""

    def __init__(self) -> None:
        self.printed = False
        self._console = Console(highlight=False, markup=False, soft_wrap=True, emoji=False)
        self._colours = AgentColours()
        self._width = 0

    def lines(self, lines: list[Line]) -> None:
        """Print them."""
        heads = [f"{line.agent}/{line.log.removesuffix('.log')}" for line in lines]
        self._width = max([self._width, *map(len, heads)])
        for head, line in zip(heads, lines, strict=True):
            self.printed = True
            shown = f"{head:{self._width}} | "
            if not self._console.is_terminal:
                sys.stdout.write(f"{shown}{line.text}\n")
                continue
            self._console.print(shown, style=self._colours.of(line.agent), end="")
            self._console.out(line.text, highlight=False)
        sys.stdout.flush()
