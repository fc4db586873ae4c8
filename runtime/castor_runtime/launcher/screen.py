"""What a person sees of a run as it goes: lines, and on a terminal a table that keeps up to date.

The table stands at the bottom and the lines scroll away above it, so that they stay in the
terminal's history; without a terminal there are only the lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.table import Table

from castor_configs.readable import format_bytes, format_seconds
from castor_records.events.event import Entry, Event
from castor_records.events.failures import CopiesTogether
from castor_records.events.training import CheckpointCompleted, IterationEnded, Warned
from castor_records.phases import MEASURED
from castor_records.recoveries import Recovery
from castor_records.result import Result
from castor_runtime.launcher.event_lines import ALWAYS, line_of
from castor_runtime.launcher.job_view import JobView
from castor_runtime.launcher.kept_memory import KeptMemory
from castor_runtime.launcher.recovery_table import recovery_table
from castor_runtime.launcher.run_folder import AgentRecord

_LINE_EVERY_NS = 1_000_000_000
_NS_PER_S = 1_000_000_000


@dataclass(slots=True)
class _Progress:
    iteration: int = 0
    checkpoint: int = 0
    loss: float | None = None


class Screen:
    """Prints one run.

    Args:
        console: where to.
        ranks_per_machine: trainers on each machine.
        quiet: say only what fails and the summary.
    """

    def __init__(self, console: Console, ranks_per_machine: int, *, quiet: bool = False) -> None:
        self._console = console
        self._ranks = ranks_per_machine
        self._quiet = quiet
        self._machines: dict[int, _Progress] = {}
        self._checkpoint = 0
        self._line_ns = -_LINE_EVERY_NS
        self._waiting: tuple[int, str] | None = None
        self._warned: set[str] = set()
        self._live: Live | None = None
        if console.is_terminal and not quiet:
            self._live = Live(console=console, auto_refresh=False, transient=True)
            self._live.start()

    def close(self) -> None:
        """Take the table away."""
        self._flush()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, time_ns: int, text: str, style: str = "") -> None:
        """Print a line with its time, counted from the start of the run."""
        self._flush()
        self._print(time_ns, text, style)

    def event(self, entry: Entry[Event]) -> None:
        """Show what happened, as far as a person wants to know it as it happens."""
        match entry.event:
            case IterationEnded():
                self._iteration(entry.time_ns, entry.event)
            case CheckpointCompleted():
                self._completed(entry.event)
            case Warned() | CopiesTogether():
                self._warning(entry.time_ns, entry.event.message)
            case event if not self._quiet or isinstance(event, ALWAYS):
                if (line := line_of(event)) is not None:
                    self.say(entry.time_ns, *line)

    def recovery(self, time_ns: int, recovery: Recovery) -> None:
        """Show a recovery that has just ended, with its phases."""
        self.say(time_ns, recovery_line(recovery), "green")

    def table(self, view: JobView | None, records: Sequence[AgentRecord]) -> None:
        """Bring the table up to date."""
        if self._live is not None:
            self._live.update(self._table(view, records), refresh=True)

    def _iteration(self, time_ns: int, event: IterationEnded) -> None:
        progress = self._machines.setdefault(event.rank // self._ranks, _Progress())
        progress.iteration, progress.loss = event.iteration, event.loss
        if event.rank != 0 or self._quiet:
            return
        shown = "" if progress.loss is None else f", loss {progress.loss:.4f}"
        complete = f", checkpoint {self._checkpoint}" if self._checkpoint else ""
        self._waiting = (time_ns, f"iteration {event.iteration}{shown}{complete}")
        if time_ns - self._line_ns >= _LINE_EVERY_NS:
            self._flush()

    def _completed(self, event: CheckpointCompleted) -> None:
        progress = self._machines.setdefault(event.rank // self._ranks, _Progress())
        progress.checkpoint = self._checkpoint = event.iteration

    def _warning(self, time_ns: int, message: str) -> None:
        """Show it whole, and once: most come from all ranks in the same words."""
        if message not in self._warned:
            self._warned.add(message)
            self.say(time_ns, f"WARNING: {message}", "yellow")

    def _flush(self) -> None:
        """Print the last iteration that was held back: what follows happened after it."""
        if self._waiting is not None:
            time_ns, text = self._waiting
            self._waiting = None
            self._line_ns = time_ns
            self._print(time_ns, text, "")

    def _print(self, time_ns: int, text: str, style: str) -> None:
        self._console.print(
            f"{time_ns / _NS_PER_S:9.3f} s  {text}",
            style=style,
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    def _table(self, view: JobView | None, records: Sequence[AgentRecord]) -> Table:
        table = Table(show_edge=False, pad_edge=False)
        table.add_column("machine")
        for heading in ("agent", "state"):
            table.add_column(heading)
        for heading in ("iteration", "loss", "checkpoint", "memory"):
            table.add_column(heading, justify="right")
        by_name = {record.name: record for record in records}
        agents = () if view is None or view.plan is None else view.plan.agents
        for machine, name in enumerate(agents):
            progress = self._machines.get(machine, _Progress())
            table.add_row(
                str(machine),
                *_agent_cells(view, by_name, name),
                str(progress.iteration or "-"),
                "-" if progress.loss is None else f"{progress.loss:.4f}",
                str(progress.checkpoint or "-"),
                format_bytes(by_name[name].memory_bytes()) if name in by_name else "-",
            )
        reports = {} if view is None else view.reports
        for name in sorted(set(reports) - set(agents)):
            table.add_row("-", *_agent_cells(view, by_name, name), "-", "-", "-", "-")
        return table


def _agent_cells(
    view: JobView | None, records: Mapping[str, AgentRecord], name: str
) -> tuple[str, str]:
    report = None if view is None else view.reports.get(name)
    root = " (root)" if view is not None and name and view.root == name else ""
    if report is None:
        return (name or "-") + root, "being replaced" if not name else "lost"
    alive = name not in records or records[name].lives
    degraded = " (degraded)" if report.state == "running" and not report.redundant else ""
    return name + root, (str(report.state) + degraded) if alive else "dead"


def recovery_line(recovery: Recovery) -> str:
    """Return a recovery in one line: where from, what it cost, and its phases in seconds."""
    phases = ", ".join(
        f"{phase.replace('_', ' ')} {seconds:.3f}"
        for phase in MEASURED
        if (seconds := recovery.seconds.get(phase)) is not None
        and (seconds > 0 or phase not in ("interrupted", "replacement"))
    )
    total = recovery.seconds.get("total")
    took = "did not end" if total is None else f"took {format_seconds(total)}"
    sources = sorted(set(recovery.sources.values()))
    where = f" from {', '.join(sources)}" if sources else ""
    return (
        f"recovery ({recovery.kind}) {took}: iteration {recovery.iteration}{where}, "
        f"{recovery.iterations_lost} lost; {phases} s"
    )


def print_summary(console: Console, result: Result) -> None:
    """Print what a run came to."""
    title = f"Run {result.job}: {result.outcome}"
    console.print(f"\n{title}", style="bold", markup=False, highlight=False, soft_wrap=True)
    table = Table(show_header=False, box=None)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("Iterations", str(result.iterations))
    table.add_row("Wall time", format_seconds(result.wall_s))
    if result.compute == "paced":
        table.add_row("Compute", "paced: waits stand for a GPU's work")
    table.add_row("Recoveries", str(len(result.recoveries)))
    lost = sum(one.iterations_lost or 0 for one in result.recoveries)
    table.add_row("Iterations lost", str(lost))
    failures = result.persistent.get("failures", [])
    if failures:
        table.add_row("Not persisted", f"{len(failures)} shares; the last: {failures[-1]['cause']}")
    for warning in result.warnings:
        table.add_row("Warning", warning["message"], style="yellow")
    console.print(table)
    # On a line of its own, so that 64 digits can be copied from a narrow terminal.
    state = result.final_state_sha256 or "unknown"
    console.print(f" Final state      {state}", soft_wrap=True, highlight=False)
    if (kept := result.kept_memory) is not None:
        console.print(f" Memory kept      {KeptMemory(**kept).words()}", soft_wrap=True)
    if not result.recoveries:
        return
    console.print(recovery_table(result.recoveries))
