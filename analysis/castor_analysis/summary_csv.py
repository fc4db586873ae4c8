"""Summaries as rows of a CSV: for the result of one experiment and for a sweep."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any


def flat_row(summary: Mapping[str, Any]) -> dict[str, object]:
    """Return a strategy's summary with `key.part` for what lies one level down."""
    row: dict[str, object] = {}
    for key, value in summary.items():
        if isinstance(value, Mapping):
            row.update({f"{key}.{part}": figure for part, figure in value.items()})
        else:
            row[key] = value
    return row


def csv_text(rows: Iterable[Mapping[str, object]]) -> str:
    """Return the rows as CSV; the first one, which there has to be, names the columns."""
    listed = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(listed[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(listed)
    return text.getvalue()
