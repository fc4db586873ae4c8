"""The measurements as tables: medians, ratios to Castor and to the floor, goals beside them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from measure import Measured
from rich.console import Console
from rich.table import Table
from systems import System

QUANTITIES = {
    "blocked_s": "blocked (s)",
    "usable_s": "replicated or usable (s)",
    "restore_s": "restore (s)",
    "fetch_s": "peer fetch (s)",
    "memory": "memory / state",
    "kill_s": "kill -9 to next iteration (s)",
    "machine_s": "machine lost to next iteration (s)",
}
GOALS = {
    "blocked_s": 0.20,
    "usable_s": 1.2,
    "restore_s": 0.2,
    "fetch_s": 0.65,
    "memory": 5.0,
    "kill_s": 3.0,
}
FLOOR_OF = {
    "blocked_s": "memcpy",
    "usable_s": "gloo both ways",
    "restore_s": "memcpy",
    "fetch_s": "gloo one way",
}
_LEGEND = """\
Medians over the timed iterations of interleaved rounds, the slowest rank of each, and of the floors
over the same rounds; in brackets the ratio to Castor (above 1: Castor is better). A rank's state is
64 float32 tensors. *Blocked*: until the trainer may change its state. *Replicated or usable*: until
a copy that outlives the rank is complete: on a peer where the system has peers (marked ⇄), in the
node's memory where it has none. *Restore*: from there into the live tensors; Castor's in a new
process and verified against its checksums. *Memory*: of all processes, agents and launcher too,
with shared memory and files in memory counted once, at its peak; the live state is 1. *Kill*: until
every rank has ended another iteration.
Systems whose tier is files have it in tmpfs."""
_GOALS_FOR = (2, 1 << 30)


def summary(system: System, runs: Sequence[Measured], all_bytes: int) -> dict[str, Any]:
    """Return the medians over all timed iterations of all rounds; None: not to be had."""
    row: dict[str, Any] = {
        "name": system.name,
        "version": system.version,
        "peer_copy": system.peer_copy,
        "note": system.note,
    }
    for quantity in QUANTITIES:
        if quantity == "memory":
            peaks = [run.peak_bytes / all_bytes for run in runs if run.peak_bytes]
            row[quantity] = median(peaks) if peaks else None
            continue
        values = [value for run in runs for value in getattr(run, quantity)]
        row[quantity] = median(values) if values else None
        row[f"{quantity}_range"] = [min(values), max(values)] if values else None
    standby = [run.standby_bytes / all_bytes for run in runs if run.standby_bytes]
    row["standby"] = median(standby) if standby else None
    row["errors"] = sorted({run.error for run in runs if run.error})
    return row


def rows(case: dict[str, Any]) -> list[list[str]]:
    """Return the cells of a case's table, the header first."""
    castor = case["systems"].get("castor", {})
    table = [["", *QUANTITIES.values()]]
    for row in case["systems"].values():
        cells = [_cell(row, quantity, castor) for quantity in QUANTITIES]
        table.append([f"{row['name']} {row['version']}", *cells])
    floors = [
        f"{case['floors'][FLOOR_OF[q]]:.2f} ({FLOOR_OF[q]})"
        if FLOOR_OF.get(q) in case["floors"]
        else ""
        for q in QUANTITIES
    ]
    table.append(["floor", *floors])
    if castor:
        table.append(["Castor over the floor", *[_over_floor(case, castor, q) for q in QUANTITIES]])
    if (case["ranks"], case["state_bytes"]) == _GOALS_FOR:
        table.append(["goal", *[f"≤ {GOALS[q]:g}" if q in GOALS else "" for q in QUANTITIES]])
    return table


def print_table(result: dict[str, Any], console: Console) -> None:
    """Print the tables and what went wrong."""
    for case in result["cases"]:
        header, *body = rows(case)
        table = Table(title=_title(case))
        for number, name in enumerate(header):
            table.add_column(name, justify="left" if number == 0 else "right")
        for cells in body:
            table.add_row(*cells)
        console.print(table)
        for line in _notes(case):
            console.print(f"- {line}", markup=False)


def as_markdown(result: dict[str, Any]) -> str:
    """Return the page of docs/results."""
    machine = result["machine"]
    lines = [
        f"# Castor beside its peers, {result['date']}",
        "",
        f"`{result['command']}`, {result['seconds']} s, commit {result['commit']}: "
        f"{machine['cores']} "
        f"cores ({machine['processor']}), {machine['memory_gib']} GiB, no GPU, Python "
        f"{machine['python']}, gloo on loopback, torch on one thread a rank. Huge pages: "
        f"{machine['huge_pages']}.",
        *(
            ["", "**Others used the machine at the same time.** Read the ratios."]
            if result["busy_machine"]
            else []
        ),
        "",
        _LEGEND,
    ]
    for case in result["cases"]:
        header, *body = rows(case)
        lines += ["", f"## {_title(case)}", ""]
        lines += ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
        lines += ["| " + " | ".join(cells) + " |" for cells in body]
        lines += ["", *[f"- {line}" for line in _notes(case)]]
    versions = ", ".join(f"{name} {v}" for name, v in sorted(result["versions"].items()))
    lines += [
        "",
        f"Versions: {versions}.",
        "",
        "Loopback says nothing about RDMA, and systems made for GPUs are away from home here.",
    ]
    return "\n".join(lines) + "\n"


def _title(case: dict[str, Any]) -> str:
    return f"{case['ranks']} ranks, {case['state_bytes'] >> 20} MiB each"


def _cell(row: dict[str, Any], quantity: str, castor: dict[str, Any]) -> str:
    value = row[quantity]
    if value is None:
        return "failed" if row["errors"] and quantity != "fetch_s" else "—"
    mark = " ⇄" if quantity == "usable_s" and row["peer_copy"] else ""
    shown = f"{value:.2f}{mark}" if value >= 0.1 else f"{value:.3f}{mark}"
    ours = castor.get(quantity)
    if not ours or row is castor:
        return shown
    return f"{shown} ({value / ours:.2g}×)"


def _over_floor(case: dict[str, Any], castor: dict[str, Any], quantity: str) -> str:
    floor = case["floors"].get(FLOOR_OF.get(quantity, ""))
    return f"{castor[quantity] / floor:.2g}×" if floor and castor[quantity] else ""


def _notes(case: dict[str, Any]) -> list[str]:
    notes = []
    for row in case["systems"].values():
        if row["note"]:
            notes.append(f"{row['name']}: {row['note']}.")
        if row["standby"]:
            notes.append(
                f"{row['name']}: its one standby machine holds its memory ready, which takes "
                f"{row['standby']:.2f} times the state of all ranks more."
            )
        notes += [f"{row['name']}: {error}" for error in row["errors"]]
    return notes
