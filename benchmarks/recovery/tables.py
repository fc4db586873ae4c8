"""The results as tables, for a terminal and for a page of docs/results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outages import SystemResult
from overhead import MemoryResult, Throughput
from rich.console import Console
from rich.table import Table as RichTable
from samples import Spread
from scale import Scale

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under headings, and what a reader must know.

    Attributes:
        title: of the table.
        columns: headings; the first column is text, the others numbers.
        rows: of as many cells.
        notes: below it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def show(self, console: Console) -> None:
        """Print it."""
        table = RichTable(title=self.title, title_justify="left")
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)
        for note in self.notes:
            console.print(f"  {note}")
        console.print()

    def to_markdown(self) -> str:
        """Return it as Markdown."""
        lines = [f"## {self.title}", "", _line(self.columns)]
        lines.append(_line(["---", *["---:"] * (len(self.columns) - 1)]))
        lines += [_line(row) for row in self.rows]
        lines += ["", *[f"- {note}" for note in self.notes], ""]
        return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def wasted_table(scale: Scale, results: Sequence[SystemResult]) -> Table:
    """Set Eq. 1 of each system beside Castor's after a trainer's death, the first result."""
    castor = results[0]
    rows = [
        [
            result.name,
            str(result.interval),
            f"{result.iteration_s:.3f}",
            result.checkpoint_s.text(3),
            result.retrieval_s.text(3),
            f"{result.wasted_s:.3f}",
            f"{result.wasted_s / castor.wasted_s:.1f}",
        ]
        for result in results
    ]
    floor_s = castor.iteration_s / 2
    bound = next(r.wasted_s for r in results if r.name.startswith("HighFreq")) / floor_s
    return Table(
        "(a) Time that a failure wastes by Eq. 1, seconds: median (least to most)",
        ["system", "interval", "iteration", "t_ckpt", "t_rtvl", "Eq. 1", "ratio"],
        rows,
        [
            f"4 ranks, one a node, {scale.state_bytes / _MIB:.2f} MiB of state each. A rank's "
            f"checkpoint reaches its peer at {scale.network_bytes_per_s / 1e6:.0f} MB/s (measured, "
            f"the fastest of several); so the storage gives a node "
            f"{scale.storage_bytes_per_s / 1e6:.3f} MB/s, 1/320 of it, as in the paper.",
            f"Iterations are paced by a sleep of {scale.pace_s:.3f} s in the forward, to stand to "
            "the way to the storage as the paper's 62 s to 480 s. Interval in iterations: HighFreq "
            "as often as Eq. 2 allows; Strawman's 3 h by the same scale.",
            "DeepSpeed's files go through a token bucket from memory to memory, beside training "
            "(saving them blocks it). Cold: torchrun, which starts all anew. Warm: forked from "
            "Castor's trainer host, so that only the checkpoints differ.",
            f"Half an iteration, {floor_s:.3f} s, is the least that checkpoints of every iteration "
            f"can waste: at the paper's length of it the best ratio to HighFreq is {bound:.0f}.",
        ],
    )


def outage_table(results: Sequence[SystemResult]) -> Table:
    """Set the whole outage of each system beside Castor's after a trainer's death."""
    castor = results[0]
    agree = all(result.losses_agree for result in results)
    return Table(
        "(a) The whole outage, seconds: median (least to most)",
        ["system", "failures", "iterations lost", "to an iteration", "to a new one", "ratio"],
        [
            [
                result.name,
                str(len(result.outages)),
                result.lost.text(0),
                result.restart_s.text(),
                result.outage_s.text(),
                f"{result.outage_s.median / castor.outage_s.median:.1f}",
            ]
            for result in results
        ],
        [
            "From the kill to the end of the first iteration, and of the first that had not been "
            "done before. Castor's failures are uniform in an iteration, the others' stratified "
            "over their interval. Killed: one trainer, or all of a machine. Where standbys wait, "
            "the machines around it tell (lease 5 s); where none does, its lease has to "
            "expire first.",
            f"Iterations that were done again gave the same loss bit for bit: {agree}.",
        ],
    )


def ratio_lines(results: Sequence[SystemResult], real_iteration_s: float) -> list[str]:
    """Say how the ratios stand to what must be reached."""
    castor = results[0]
    lines = []
    for result in results:
        if not result.name.startswith(("HighFreq", "Strawman")):
            continue
        wasted = result.wasted_s / castor.wasted_s
        outage = result.outage_s.median / castor.outage_s.median
        lines.append(
            f"{result.name}: {wasted:.1f} times Castor's wasted time by Eq. 1 (must 13, goal 50), "
            f"{outage:.1f} times its whole outage"
        )
    high = next(r for r in results if r.name.startswith("HighFreq"))
    mine_s = castor.checkpoint_s.median + real_iteration_s / 2 + castor.retrieval_s.median
    theirs_s = 1.5 * high.checkpoint_s.median + high.retrieval_s.median
    lines.append(
        f"without the sleep an iteration takes {real_iteration_s:.3f} s; Eq. 1 with that and the "
        f"times above: HighFreq {theirs_s / mine_s:.1f} times Castor (computed)"
    )
    return lines


def parts_table(results: Sequence[SystemResult]) -> Table:
    """Say where Castor's outages go."""
    castors = [result for result in results if result.parts]
    names = list(castors[0].parts)
    return Table(
        "(a) Castor's outages by part, seconds: median (least to most)",
        ["part", *[result.name for result in castors]],
        [[name, *[result.parts[name].text(3) for result in castors]] for name in names],
    )


def detection_table(results: Sequence[SystemResult]) -> Table:
    """Say how long failures went unnoticed."""
    rows = []
    for result in results:
        if result.detection_s:
            found = Spread.of(result.detection_s)
            scale, unit = (1e3, "ms") if found.median < 1 else (1.0, "s")
            quantiles = [f"{found.quantile(q) * scale:.3g} {unit}" for q in (0.5, 0.99)]
            worst = f"{max(found.values) * scale:.3g} {unit}"
            rows.append([result.name, str(len(found.values)), *quantiles, worst])
    return Table(
        "(d) From the kill to its detection",
        ["killed", "failures", "p50", "p99", "most"],
        rows,
        [
            "A dead trainer: goal under 100 ms. A dead machine: at once with a standby, else "
            "its lease's time."
        ],
    )


def throughput_table(results: Sequence[Throughput]) -> Table:
    """Say what checkpoints cost while nothing fails."""
    return Table(
        "(b) Iteration time with a checkpoint of every iteration against none",
        ["case", "ranks", "m", "MiB a rank", "without, s", "with, s", "overhead, %"],
        [
            [
                result.name,
                str(result.ranks),
                str(result.replicas),
                f"{result.state_bytes / _MIB:.1f}",
                result.without_s.text(3),
                result.with_s.text(3),
                result.overhead.text(1, 100.0),
            ]
            for result in results
        ],
        [
            "Pairs of blocks in turns in one run, without (the script does not call step()) and "
            "with; overhead: median (least to most) over the pairs. The first iteration of each "
            "block is left out.",
            "Must: under 5 % where cores are free for it, as beside a GPU: there the forward is a "
            "sleep. The other case computes on all cores, and checkpoints take from it what they "
            "need.",
        ],
    )


def memory_table(result: MemoryResult) -> Table:
    """Say what memory checkpoints take, and whose."""
    rows = [
        [
            name,
            *[f"{size / _MIB:.1f}" for size in (m.private, m.shared, m.peak, m.proportional)],
            f"{m.unique / _MIB:.1f}",
        ]
        for name, m in (
            ("trainer without", result.without),
            ("trainer with", result.checkpointed),
            ("agent", result.agent),
            ("trainer host", result.host),
        )
    ]
    over = result.segments_over_bytes / _MIB
    return Table(
        "(c) Memory, MiB",
        ["process", "own, peak", "shared, peak", "VmHWM", "Pss, own", "unique"],
        rows,
        [
            f"2 ranks, {result.state_bytes / _MIB:.1f} MiB of state each, m = {result.replicas}. "
            "Own: RssAnon + RssFile; shared: checkpoint memory that is mapped, which the agent "
            "owns and both count in VmHWM; Pss and unique: at the end, without shared memory.",
            f"A trainer's own memory grows by {100 * result.growth:.1f} % (must: under 10 %).",
            f"An agent's checkpoint memory: {result.segments_bytes / _MIB:.1f} MiB, which is "
            f"2·m·part and {over:.2f} MiB (headers, tables, room for small states). Its process "
            f"adds {result.agent.unique / _MIB:.0f} MiB of its own, the trainer host "
            f"{result.host.unique / _MIB:.0f} MiB; most of what they map, they share by fork.",
        ],
    )
