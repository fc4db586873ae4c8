"""One point of a sweep: an experiment with overrides, run whole in one process.

A finished point is one file, named by a digest of all that its numbers follow from: the resolved
experiment, cluster and model, the content of the trace, what the strategies made of them (so a
strategy of the user's own counts too), and Castor's version and sources. A point whose file is
there need not run; a point with anything changed has another name.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from castor_analysis.summary import summarise_runs
from castor_configs.atomic import write_text
from castor_configs.dump import dump_toml
from castor_configs.errors import InputError
from castor_policy.version import __version__
from castor_sim.run import engine_for, replications
from castor_sim.setup import Setup, load_setup
from castor_sim.tally import Tally
from castor_traces.write import format_trace

SCHEMA = 1

_SOURCES = ("castor_policy", "castor_configs", "castor_traces", "castor_sim")
"""The packages whose code makes a point's tallies; how they are summed up is here and in
`castor_analysis.summary`."""


@dataclass(frozen=True, slots=True)
class PointTask:
    """What a worker needs to run a point.

    Attributes:
        experiment: its path, or the name of a shipped one.
        overrides: `key=value`, later ones over earlier ones.
        folder: where the point's file goes.
    """

    experiment: str
    overrides: tuple[str, ...]
    folder: Path


@dataclass(frozen=True, slots=True)
class PointOutcome:
    """What became of a point: its key, or what was wrong with it."""

    key: str = ""
    fault: str = ""


def check_point(task: PointTask) -> PointOutcome:
    """Load and resolve the point's experiment, without running it."""
    try:
        return PointOutcome(key=key_of(load_setup(task.experiment, task.overrides)))
    except (InputError, ValueError) as error:
        return PointOutcome(fault=str(error))


def run_point(task: PointTask) -> PointOutcome:
    """Run all replications of the point by the jump engine and write its file, whole or not.

    Whatever goes wrong is the outcome's fault: one point must not take the others with it.
    """
    try:
        setup = load_setup(task.experiment, task.overrides)
        key = key_of(setup)
        document = _run(setup, key)
        write_text(point_file(task.folder, key), json.dumps(document, indent=1) + "\n")
    except Exception as error:  # noqa: BLE001 - any fault of a point is reported with its name
        return PointOutcome(fault=f"{type(error).__name__}: {error}")
    return PointOutcome(key=key)


def point_file(folder: Path, key: str) -> Path:
    """Return where the point of this key is kept."""
    return folder / f"{key}.json"


def read_point(folder: Path, key: str) -> dict[str, Any] | None:
    """Return a finished point; None if it is not there or is not whole."""
    try:
        document = json.loads(point_file(folder, key).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(document, dict):
        return None
    same = document.get("key") == key and document.get("schema") == SCHEMA
    return document if same and isinstance(document.get("strategies"), dict) else None


def key_of(setup: Setup) -> str:
    """Return the digest of all that a point's numbers follow from."""
    parts = {
        "castor": __version__,
        "sources": sources_digest(),
        "engine": engine_for(setup).value,
        "experiment": dump_toml(setup.experiment),
        "cluster": dump_toml(setup.cluster),
        "model": dump_toml(setup.model),
        "trace": _trace_digest(setup),
        "profiles": {name: profile._asdict() for name, profile in setup.costs.items()},
        "placements": {name: place.replicas for name, place in setup.placements.items()},
        "operations": {name: setup.operations_of(name)._asdict() for name in setup.costs},
        "horizon_ns": setup.horizon_ns,
        "target_iterations": setup.target_iterations,
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


@cache
def sources_digest() -> str:
    """Return the digest of the code that a point's numbers are made by."""
    files = [Path(__file__), Path(inspect.getfile(summarise_runs))]
    for package in _SOURCES:
        found = importlib.util.find_spec(package)
        assert found is not None, "a package that is imported above has a place"
        assert found.origin is not None, "and that place is a file"
        files += sorted(Path(found.origin).parent.rglob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:32]


def _trace_digest(setup: Setup) -> str | None:
    if setup.trace is None:
        return None
    return hashlib.sha256(format_trace(setup.trace).encode()).hexdigest()


def _run(setup: Setup, key: str) -> dict[str, Any]:
    tallies: dict[str, list[Tally]] = {name: [] for name in setup.costs}
    for name, _seed, tally in replications(setup, engine_for(setup)):
        tallies[name].append(tally)
    return {
        "schema": SCHEMA,
        "key": key,
        "strategies": {
            name: summary.as_json() for name, summary in summarise_runs(setup, tallies).items()
        },
        "trace": None
        if setup.trace is None
        else {"name": setup.trace.name, "sha256": _trace_digest(setup)},
        "experiment": dump_toml(setup.experiment),
        "cluster": dump_toml(setup.cluster),
        "model": dump_toml(setup.model),
    }
