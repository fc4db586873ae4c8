"""The values that the paper prints or plots, one small table a figure."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class PublishedValue:
    """One value of the paper.

    Attributes:
        value: in the unit of its figure.
        source: how it is known: "text", "digitised +-x", "artifact" (its notebook's formula), or
            "computed" (from the artifact's formula, where the figure shows no number).
    """

    value: float
    source: str


def published_values(name: str) -> dict[tuple[str, str], PublishedValue]:
    """Return a figure's table by (series, point), in the file's order.

    Args:
        name: of the table: "fig09", "fig15".

    Raises:
        FileNotFoundError: there is no table of this name.
    """
    text = files(__package__).joinpath(f"{name}.csv").read_text(encoding="utf-8")
    return {
        (row["series"], row["point"]): PublishedValue(float(row["value"]), row["source"])
        for row in csv.DictReader(text.splitlines())
    }
