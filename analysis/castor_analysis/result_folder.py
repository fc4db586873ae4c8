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
from castor_configs.atomic import replacing, write_text
from castor_configs.dump import dump_toml
from castor_policy.events import Event
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
            "placement": {name: place.strategy for name, place in setup.placements.items()},
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


def clear_result(folder: Path) -> None:
    """Make room for a result: what an earlier one left in `folder` would pass for this one's."""
    if not (folder / "result.json").exists():
        return
    stale = ["result.json", "trace.csv", "timeline.perfetto.json", "events/*.jsonl"]
    stale += [f"{picture}.{kind}" for picture in ("comparison", "timeline-*") for kind in PICTURES]
    for pattern in stale:
        for path in folder.glob(pattern):
            path.unlink()


def _with_own_files(folder: Path, setup: Setup) -> dict[str, object]:
    """Copy the files of the user's own strategies beside the result; return all strategies."""
    strategies: dict[str, object] = dict(setup.experiment.strategies)
    copies: dict[Path, str] = {}
    for name, table in setup.experiment.strategies.items():
        if not isinstance(table, OwnStrategy):
            continue
        place, _, strategy = table.kind.rpartition(":")
        if not place.endswith(".py"):
            continue
        source = (setup.folder / place).resolve()
        if source not in copies:
            taken = set(copies.values())
            copy = source.name
            while copy in taken:
                copy = f"_{copy}"
            copies[source] = copy
            write_text(folder / copy, source.read_text(encoding="utf-8"))
        strategies[name] = table.model_copy(update={"kind": f"{copies[source]}:{strategy}"})
    return strategies


def write_events(folder: Path, strategy: str, events: Iterable[Event]) -> Path:
    """Write one strategy's event log; a line an event."""
    path = folder / "events" / f"{strategy}.jsonl"
    with replacing(path) as part, part.open("w", encoding="utf-8") as file:
        for event in events:
            file.write(event.to_line() + "\n")
    return path
