"""A result's folder: the numbers, and all that is needed to run them again from there.

result.json         summary of every strategy, settings, provenance
summary.csv         the same figures, a row a strategy
replications.csv    a row for each strategy and seed, all integers
experiment.toml     the resolved experiment; cluster.toml, model.toml, trace.csv and
                        files of one's own strategies beside it
events/NAME.jsonl   the event log of the first seed, by the simpy engine
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from castor_analysis.provenance import provenance
from castor_analysis.replayed import long_recoveries, replayed_json
from castor_analysis.summary import Summary
from castor_analysis.summary_csv import csv_text, flat_row
from castor_configs.atomic import is_own, replacing, write_text
from castor_configs.dump import dump_toml
from castor_records.events.event import Entry, Event
from castor_sim.experiment import OwnStrategy
from castor_sim.setup import Setup
from castor_sim.tally import Tally
from castor_traces.write import write_trace

PICTURES = ("png", "pdf")
TalliesByStrategy = Mapping[str, Sequence[tuple[int, Tally]]]


def result_document(
    setup: Setup, summaries: Mapping[str, Summary], *, engine: str
) -> dict[str, Any]:
    """Return what result.json holds and `castor simulate --json` prints."""
    experiment, job = setup.experiment, setup.job
    return {
        "schema": 1,
        "name": experiment.name,
        "strategies": {name: summary.as_json() for name, summary in summaries.items()},
        "job": {
            "machines": job.machines,
            "gpus": job.gpus,
            "model": setup.model.name,
            "cluster": setup.cluster.name,
            "replicas": job.replicas,
            "placement": {name: place.kind for name, place in setup.placements.items()},
            "iteration_s": job.iteration_ns / 1e9,
            "checkpoint_bytes": job.checkpoint_bytes,
            "interruptions_per_day": job.interruptions_per_s * 86_400,
        },
        "trace": setup.trace.name if setup.trace else None,
        "replayed": replayed_json(setup),
        "notes": long_recoveries(setup),
        "seed": experiment.seed,
        "seeds": experiment.seeds,
        "engine": engine,
        "currency": setup.cluster.currency,
        "price_per_gpu_hour": setup.price_per_gpu_hour,
        "provenance": provenance(),
    }


def write_result(
    folder: Path,
    setup: Setup,
    document: Mapping[str, Any],
    tallies: TalliesByStrategy,
) -> None:
    """Write everything but the event logs into `folder`."""
    summaries = (
        {"strategy": name, **flat_row(summary)} for name, summary in document["strategies"].items()
    )
    write_text(folder / "summary.csv", csv_text(summaries))
    rows = (
        {"strategy": name, "seed": seed, **tally.as_dict()}
        for name, runs in tallies.items()
        for seed, tally in runs
    )
    write_text(folder / "replications.csv", csv_text(rows))
    changes: dict[str, object] = {"cluster": "cluster.toml", "model": "model.toml"}
    if setup.trace is not None:
        write_trace(setup.trace, folder / "trace.csv")
        failures = setup.experiment.failures
        changes["failures"] = failures.model_copy(update={"trace": "trace.csv"})
    changes["strategies"] = _with_own_files(folder, setup)
    write_text(folder / "cluster.toml", dump_toml(setup.cluster))
    write_text(folder / "model.toml", dump_toml(setup.model))
    experiment = setup.experiment.model_copy(update=changes)
    write_text(folder / "experiment.toml", dump_toml(experiment))
    write_text(folder / "result.json", json.dumps(document, indent=2, allow_nan=False) + "\n")


def result_files(setup: Setup, *, plot: bool) -> list[str]:
    """Return the names of all that a result's folder will hold, relative to it."""
    names = ["result.json", "summary.csv", "replications.csv"]
    names += ["experiment.toml", "cluster.toml", "model.toml"]
    names += ["trace.csv"] if setup.trace is not None else []
    names += _own_copies(setup).values()
    names += [f"events/{name}.jsonl" for name in setup.costs]
    if plot:
        stems = ["comparison", *(f"timeline-{name}" for name in setup.costs)]
        names += [f"{stem}.{kind}" for stem in stems for kind in PICTURES]
        names.append("timeline.perfetto.json")
    return names


def read_files(setup: Setup, experiment: str) -> list[Path]:
    """Return the user's files that a simulation reads; none of them is ever written."""
    folder, trace = setup.folder, setup.experiment.failures.trace
    named = [experiment, setup.experiment.cluster, setup.experiment.model, trace or ""]
    paths = [Path(name) for name in named if name] + [folder / name for name in named if name]
    return [path for path in paths if path.is_file()] + list(_own_copies(setup))


def clear_result(folder: Path) -> None:
    """Make room for a result: what an earlier one left in `folder` would pass for this one's.

    Only what Castor wrote and nobody has changed since goes.
    """
    if not (folder / "result.json").exists():
        return
    stale = ["result.json", "trace.csv", "timeline.perfetto.json", "events/*.jsonl"]
    stale += [f"{picture}.{kind}" for picture in ("comparison", "timeline-*") for kind in PICTURES]
    for pattern in stale:
        for path in folder.glob(pattern):
            if is_own(path):
                path.unlink()


def _own_copies(setup: Setup) -> dict[Path, str]:
    """Return the files of the user's own strategies, and the name of the copy of each."""
    copies: dict[Path, str] = {}
    for table in setup.experiment.strategies.values():
        place = table.kind.rpartition(":")[0]
        if not isinstance(table, OwnStrategy) or not place.endswith(".py"):
            continue
        source = (setup.folder / place).resolve()
        if source not in copies:
            copy = source.name
            while copy in copies.values():
                copy = f"_{copy}"
            copies[source] = copy
    return copies


def _with_own_files(folder: Path, setup: Setup) -> dict[str, object]:
    """Copy the files of the user's own strategies beside the result; return all strategies."""
    copies = _own_copies(setup)
    for source, copy in copies.items():
        write_text(folder / copy, source.read_text(encoding="utf-8"))
    strategies: dict[str, object] = {}
    for name, table in setup.experiment.strategies.items():
        place, _, strategy = table.kind.rpartition(":")
        copied = copies.get((setup.folder / place).resolve()) if place.endswith(".py") else None
        changes = {} if copied is None else {"kind": f"{copied}:{strategy}"}
        strategies[name] = table.model_copy(update=changes)
    return strategies


def write_events(folder: Path, strategy: str, entries: Iterable[Entry[Event]]) -> Path:
    """Write one strategy's event log; a line an event."""
    path = folder / "events" / f"{strategy}.jsonl"
    with replacing(path) as part, part.open("w", encoding="utf-8") as file:
        for entry in entries:
            file.write(entry.to_line() + "\n")
    return path
