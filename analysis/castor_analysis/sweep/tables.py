"""A finished sweep as one table, one JSON document, and a picture."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from castor_analysis.provenance import provenance
from castor_analysis.summary_csv import csv_text, flat_row
from castor_analysis.sweep.points import SCHEMA, sources_digest
from castor_analysis.sweep.run import Sweep, SweepResult
from castor_configs.atomic import write_text
from castor_policy.version import __version__


def sweep_document(result: SweepResult) -> dict[str, Any]:
    """Return what sweep.json holds and `castor sweep --json` prints.

    Nothing in it hangs on when or where it was made, nor on the number of jobs.
    """
    sweep = result.sweep
    return {
        "schema": SCHEMA,
        "experiment": sweep.experiment,
        "set": list(sweep.overrides),
        "parameters": {axis.key: [_plain(value) for value in axis.values] for axis in sweep.axes},
        "castor": __version__,
        "sources": sources_digest(),
        "points": [
            {
                "parameters": {key: _plain(value) for key, value in point.settings},
                "key": key,
                "trace": document["trace"],
                "strategies": document["strategies"],
            }
            for point, key, document in zip(
                sweep.points, result.keys, result.documents, strict=True
            )
        ],
    }


SWEEP_FILES = ("sweep.csv", "sweep.json", "provenance.json", "sweep.png", "sweep.pdf")
"""What a sweep leaves in its folder, the points' own files aside."""


def sweep_csv(result: SweepResult) -> str:
    """Return sweep.csv: a row for each point and strategy, the parameters as they were written."""
    return csv_text(_rows(result))


def write_sweep(result: SweepResult, folder: Path) -> dict[str, Any]:
    """Write sweep.csv, sweep.json and provenance.json; return the JSON document.

    provenance.json says which machine and libraries wrote them; it alone may differ between two
    runs of one sweep.
    """
    document = sweep_document(result)
    write_text(folder / "sweep.csv", sweep_csv(result))
    write_text(folder / "sweep.json", json.dumps(document, indent=1) + "\n")
    write_text(folder / "provenance.json", json.dumps(provenance(), indent=1) + "\n")
    return document


def varying(sweep: Sweep) -> tuple[int, ...]:
    """Return the places of the axes with more than one value."""
    return tuple(place for place, axis in enumerate(sweep.axes) if len(axis.values) > 1)


def _plain(written: str) -> object:
    """Return a value as TOML reads it where JSON has it too, and its text elsewhere."""
    try:
        parsed = tomllib.loads(f"value = {written}")
        if len(parsed) != 1:
            return written
        json.dumps(parsed["value"], allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        return written
    return parsed["value"]


def _rows(result: SweepResult) -> Iterator[dict[str, object]]:
    for point, document in zip(result.sweep.points, result.documents, strict=True):
        for name, summary in document["strategies"].items():
            yield {**dict(point.settings), "strategy": name, **flat_row(summary)}


def ratios(result: SweepResult, strategy: str) -> Sequence[Mapping[str, float] | None]:
    """Return the effective training time ratio of one strategy at each point, None without it."""
    return [
        document["strategies"][strategy]["effective_training_time_ratio"]
        if strategy in document["strategies"]
        else None
        for document in result.documents
    ]


def strategy_names(result: SweepResult) -> list[str]:
    """Return the strategies of all points, in the order in which they come up."""
    return list(dict.fromkeys(name for one in result.documents for name in one["strategies"]))
