"""compare.json and compare.csv: what a comparison came to, for programs."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from castor_analysis.compare.comparison import Comparison
from castor_analysis.compare.points import Point
from castor_analysis.compare.scheme_order import TIE
from castor_analysis.compare.settings import TRAFFIC
from castor_analysis.provenance import provenance
from castor_configs.atomic import output_files, write_text
from castor_records.result import Result

FORMAT: Final = "castor-compare-1"

_SETTING: Final = ("link", "model", "scheme", "failure")
"""Keys of a setting that have a column first; others follow by name."""


def compare_document(
    comparison: Comparison, *, command: Sequence[str], date: str
) -> dict[str, Any]:
    """Return what compare.json holds.

    Args:
        comparison: to write down.
        command: that made it.
        date: of today, ISO 8601.
    """
    median, worst = comparison.median_error, comparison.worst_error
    results = [run.result for run in comparison.runs]
    return {
        "format": FORMAT,
        "date": date,
        "median_error": median,
        "worst_error": worst,
        "points": len(comparison.held_out),
        "by_quantity": comparison.by_quantity(),
        "order_of_schemes": [order.to_json() for order in comparison.orders],
        "order_tie": TIE,
        "calibrated_on": list(comparison.calibrated_on),
        "held_out": [point.to_json() for point in comparison.held_out],
        "fitted": [point.to_json() for point in comparison.fitted],
        "left_out": dict(comparison.left_out),
        "commands": [shlex.join(command), *(_command(result) for result in results)],
        "seeds": {run.name: dict(run.result.seeds) for run in comparison.runs},
        "versions": {**_agreed([result.versions for result in results]), **provenance()},
        "machine": _agreed([result.machine for result in results]),
        "compute": sorted({str(result.compute) for result in results}),
    }


REPORT_FILES = ("compare.json", "compare.csv", "compare.html")


def write_report(
    document: Mapping[str, Any],
    comparison: Comparison,
    out: Path,
    page: str = "",
    *,
    overwrite: bool = False,
) -> tuple[Path, ...]:
    """Write compare.json, compare.csv and compare.html into a folder, which is made.

    Args:
        document: as `compare_document` makes it.
        comparison: that it is of.
        out: the folder.
        page: for compare.html; "": no such file.
        overwrite: replace files that are there, whoever wrote them.

    Returns:
        The paths of what was written.

    Raises:
        InputError: the folder cannot be made, or something else is where a file shall be; nothing
            is written then.
        OSError: a file cannot be written.
    """
    # All texts are made before the first is written: a fault leaves no half of a report behind.
    texts = {
        "compare.json": json.dumps(document, indent=1, allow_nan=False) + "\n",
        "compare.csv": points_csv(comparison.held_out, comparison.fitted),
    }
    if page:
        texts["compare.html"] = page
    files = output_files(out, texts, overwrite=overwrite)
    for file, text in zip(files, texts.values(), strict=True):
        write_text(file, text)
    return files


def points_csv(held_out: Sequence[Point], fitted: Sequence[Point]) -> str:
    """Return all points as CSV, one a row; `held_out` says which count."""
    points = [*((point, 1) for point in held_out), *((point, 0) for point in fitted)]
    keys = setting_keys(point for point, _ in points)
    columns = (
        *("quantity", "held_out", *keys, "unit", "measured", "p10", "p90"),
        *("simulated", "error", "samples", "runs"),
    )
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for point, counts in points:
        error = point.error
        writer.writerow(
            [
                point.quantity,
                counts,
                *(point.setting.get(key, "") for key in keys),
                point.unit,
                f"{point.measured:.6g}",
                *(f"{edge:.6g}" for edge in point.spread),
                f"{point.simulated:.6g}",
                "" if error is None else f"{error:+.6f}",
                point.samples,
                " ".join(point.runs),
            ]
        )
    return file.getvalue()


def setting_keys(points: Iterable[Point]) -> list[str]:
    """Return the keys of all settings, those that a reader looks for first."""
    keys = {key for point in points for key in point.setting}
    return [key for key in _SETTING if key in keys] + sorted(keys - set(_SETTING))


def telling_keys(points: Sequence[Point]) -> list[str]:
    """Return the keys in which the points differ: the others need no column.

    Nor does one of a scheme's own keys that follows from the rest, such as a rate of copies that
    was chosen by the link.
    """
    keys = [
        key
        for key in setting_keys(points)
        if len({point.setting[key] for point in points if key in point.setting}) > 1
    ]
    for key in [key for key in keys if key in TRAFFIC]:
        others = [other for other in keys if other != key]
        own = [point.setting for point in points if key in point.setting]
        rest = {tuple(setting.get(other) for other in others) for setting in own}
        if len({(*(setting.get(o) for o in others), setting[key]) for setting in own}) == len(rest):
            keys = others
    return keys


def _command(result: Result) -> str:
    return shlex.join(result.command)


def _agreed(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what all runs say alike; where they differ, all that they say."""
    found: dict[str, list[Any]] = {}
    for document in documents:
        for name, value in document.items():
            if value not in found.setdefault(name, []):
                found[name].append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}
