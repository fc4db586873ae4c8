"""castor simulate: strategies against failures, over months of training."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from castor.commands.overwriting import Overwrite

if TYPE_CHECKING:
    from castor_records.events.event import Entry, Event
    from castor_sim.run import Engine
    from castor_sim.setup import Setup
    from castor_sim.tally import Tally

STDERR = Console(stderr=True, highlight=False)


class EngineName(StrEnum):
    """The engines by name; castor_sim.run.Engine says what each is."""

    JUMP = "jump"
    SIMPY = "simpy"


def simulate(
    experiment: Annotated[
        str,
        typer.Argument(metavar="EXPERIMENT.toml", help="An experiment, by path or shipped name."),
    ],
    trace: Annotated[
        str | None,
        typer.Option("--trace", metavar="F", help="Replay this trace instead: a file or a name."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Replications.")] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Jobs at a time; 0: one a core.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write results and config here.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. replicas=3."),
    ] = None,
    plot: Annotated[
        bool, typer.Option("--plot", help="Draw the comparison and the timelines (into --out).")
    ] = False,
    engine: Annotated[
        EngineName, typer.Option(help="jump is compiled; simpy gives the same integers.")
    ] = EngineName.JUMP,
    exact_iterations: Annotated[
        bool,
        typer.Option(
            "--exact-iterations",
            help="Simulate every iteration and chunk one by one: slow, the same result.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the effective configuration and stop.")
    ] = False,
) -> None:
    """Simulate training under failures and compare checkpoint strategies."""
    from castor_analysis.result_folder import (
        clear_result,
        read_files,
        result_document,
        result_files,
    )
    from castor_analysis.summary import summarise_runs
    from castor_configs.atomic import output_files
    from castor_configs.dump import dump_toml
    from castor_configs.errors import InputError
    from castor_sim.run import Engine, engine_for

    if plot and out is None:
        raise InputError("needs --out DIR to put the pictures into", key="--plot")
    changes = list(overrides or ())
    if seeds is not None:
        changes.append(f"seeds={seeds}")
    setup = load(experiment, changes, trace)
    if dry_run:
        typer.echo(dump_toml(setup.experiment), nl=False)
        return
    if out is not None:
        reads = read_files(setup, experiment)
        output_files(out, result_files(setup, plot=plot), overwrite=overwrite, reads=reads)
        clear_result(out)
    wanted = Engine.EXACT if exact_iterations else Engine(engine.value)
    chosen = engine_for(setup, wanted)
    say_source(setup)
    if chosen != wanted:
        STDERR.print(
            "note: the compiled engine knows failures alone; the simpy engine runs, more slowly",
            style="yellow",
        )
    runs = run_all(setup, chosen, jobs or os.cpu_count() or 1)
    tallies = {name: [tally for _seed, tally in of_seeds] for name, of_seeds in runs.items()}
    summaries = summarise_runs(setup, tallies)
    document = result_document(setup, summaries, engine=chosen.value)
    if out is not None:
        write_all(out, setup, document, runs, plot=plot)
    if as_json:
        typer.echo(json.dumps(document, indent=2, allow_nan=False))
    else:
        Console().print(comparison_table(document))
        if out is not None:
            STDERR.print(f"results in {out}; run again: castor simulate {out}/experiment.toml")


def load(experiment: str, changes: list[str], trace: str | None) -> Setup:
    """Load the experiment; `trace`, if given, takes the place of what fails in it."""
    from castor_configs.errors import InputError
    from castor_sim.setup import load_setup

    if trace is None:
        return load_setup(experiment, tuple(changes))
    name = str(Path(trace).resolve() if Path(trace).is_file() else trace)
    replay = ('failures.process="trace"', f"failures.trace={json.dumps(name)}")
    try:
        return load_setup(experiment, (*changes, *replay))
    except InputError as error:
        if error.key == "failures.trace" and error.__cause__ is not None:
            # The trace itself is at fault, not the experiment that it was put into.
            raise InputError(error.message, key="--trace") from error
        raise


def say_source(setup: Setup) -> None:
    """Say on stderr what fails: which part of which trace, or which generated process."""
    from castor_analysis.replayed import long_recoveries, replayed_words

    job = setup.job
    if setup.trace is not None:
        failing = replayed_words(setup)
    else:
        process = setup.experiment.failures.process
        per_day = job.interruptions_per_s * 86_400
        failing = f"generated failures ({process}), {per_day:.3g} interruptions a day"
    STDERR.print(
        f"{setup.experiment.name}: {setup.model.name} on {job.machines} machines; {failing}",
        style="dim",
    )
    for note in long_recoveries(setup):
        STDERR.print(f"note: {note}", style="yellow")


def run_all(setup: Setup, engine: Engine, jobs: int) -> dict[str, list[tuple[int, Tally]]]:
    """Run all replications with a progress bar on stderr."""
    from castor_sim.compiled import needs_compiling
    from castor_sim.run import Engine, replications

    if engine == Engine.JUMP and needs_compiling():
        STDERR.print("compiling the engine, once on this machine: about 10 s", style="dim")
    runs: dict[str, list[tuple[int, Tally]]] = {name: [] for name in setup.costs}
    columns = (TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=STDERR, transient=True) as progress:
        task = progress.add_task("", total=len(setup.costs) * setup.experiment.seeds)
        for name, seed, tally in replications(setup, engine, jobs):
            runs[name].append((seed, tally))
            progress.advance(task)
    return runs


def write_all(
    out: Path,
    setup: Setup,
    document: Mapping[str, Any],
    runs: Mapping[str, Sequence[tuple[int, Tally]]],
    *,
    plot: bool,
) -> None:
    """Write the result's folder: numbers, configuration, event logs, and pictures if asked for.

    The event logs come from the simpy engine on the first seed, whose tally has to equal the
    one that the replications gave.
    """
    from castor_analysis.result_folder import write_events, write_result
    from castor_sim.run import Engine, run_once

    write_result(out, setup, document, runs)
    logs: dict[str, list[Entry[Event]]] = {}
    for name, tallies in runs.items():
        seed, expected = tallies[0]
        entries: list[Entry[Event]] = []
        tally = run_once(setup, name, seed, Engine.SIMPY, entries.append)
        if tally != expected:
            raise AssertionError(
                f"the engines disagree on strategy {name}, seed {seed}; please report this"
            )
        write_events(out, name, entries)
        logs[name] = entries
    if plot:
        draw_all(out, setup, document, logs)


def draw_all(
    out: Path,
    setup: Setup,
    document: Mapping[str, Any],
    logs: Mapping[str, Sequence[Entry[Event]]],
) -> None:
    """Draw the comparison and each strategy's timeline; write the Perfetto trace beside them."""
    from castor_analysis.pictures.chrome_trace import to_chrome_trace
    from castor_analysis.pictures.outcome import draw_comparison, draw_timeline
    from castor_configs.atomic import write_text

    draw_comparison(document, out / "comparison")
    for name, entries in logs.items():
        draw_timeline(entries, f"{setup.experiment.name}: {name}", out / f"timeline-{name}")
    write_text(out / "timeline.perfetto.json", json.dumps(to_chrome_trace(logs)) + "\n")


def comparison_table(document: Mapping[str, Any]) -> Table:
    """Return the comparison of strategies as a table for a terminal of 80 columns."""
    job, currency, seeds = document["job"], document["currency"], document["seeds"]
    rows = document["strategies"].values()
    in_place = any(row["recoveries_in_place"] for row in rows)
    troubles = any(row["set_aside"] + row["corruptions"] for row in rows)
    runs = "1 replication" if seeds == 1 else f"{seeds} replications"
    table = Table(
        title=f"{document['name']}: {job['machines']} machines, {runs}",
        caption="effective: useful training time over wall time, with its 95 % interval; failed:"
        " machines of the job, each time one fails; resumed: recoveries, one for all that fails"
        " during it; "
        + ("in place: those that did not restart all trainers; " if in_place else "")
        + "own, peer, storage: where the failed machines' shards came from, "
        + ("after silent errors and for slow machines, too, " if troubles else "")
        + "storage with starts from scratch",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("strategy", overflow="fold")
    table.add_column("effective", justify="right", no_wrap=True)
    table.add_column("failed", justify="right", no_wrap=True)
    resumed = "resumed/\nin place" if in_place else "resumed"
    table.add_column(resumed, justify="right", no_wrap=True)
    table.add_column("own/peer/\nstorage", justify="right", no_wrap=True)
    table.add_column(f"lost {currency}", justify="right", no_wrap=True)
    strategies = document["strategies"].items()
    ranked = sorted(strategies, key=lambda item: -item[1]["effective_training_time_ratio"]["mean"])
    for name, row in ranked:
        ratio, sources = row["effective_training_time_ratio"], row["recovered_from"]
        known = ratio["ci95_low"] is not None
        half = (ratio["ci95_high"] - ratio["ci95_low"]) / 2 if known else 0.0
        from_storage = sources["storage"] + sources["scratch"]
        table.add_row(
            name,
            f"{ratio['mean']:.4f} ±{half:.4f}" if known else f"{ratio['mean']:.4f}",
            f"{row['failures']['total']:.1f}",
            f"{row['recoveries']:.0f}/{row['recoveries_in_place']:.0f}"
            if in_place
            else f"{row['recoveries']:.1f}",
            f"{sources['own_memory']:.0f}/{sources['peer']:.0f}/{from_storage:.0f}",
            f"{row['money_lost']['mean']:,.0f}",
        )
    return table
