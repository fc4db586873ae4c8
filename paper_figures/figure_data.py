"""The numbers behind a figure: rows that a CSV holds, and from which the picture is drawn."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from castor_configs.atomic import replacing
from castor_configs.errors import InputError

COLUMNS = (
    "figure",
    "series",
    "point",
    "paper",
    "ours",
    "difference",
    "note",
    "unit",
    "low",
    "high",
)
"""Columns of the CSV; low and high are the ends of a 95 % band of ours, where it is simulated."""


@dataclass(frozen=True, slots=True)
class Row:
    """One point of a figure.

    Attributes:
        figure: "fig15a": figure and panel.
        series: the line or the kind of bar.
        point: where on the axis: a number as text, or a name.
        ours: this project's value.
        unit: of the values: "min", "%", "ratio".
        paper: the paper's value, where it has one.
        note: why the two differ, or where the paper disagrees with itself.
        low, high: 95 % band of ours, where it was simulated.
    """

    figure: str
    series: str
    point: str
    ours: float
    unit: str
    paper: float | None = None
    note: str = ""
    low: float | None = None
    high: float | None = None

    @property
    def difference(self) -> float | None:
        """Ours less the paper's; None where the paper has no value."""
        return None if self.paper is None else self.ours - self.paper

    @property
    def band(self) -> tuple[float, float]:
        """The ends of the 95 % band; both are our value where nothing was simulated."""
        low = self.ours if self.low is None else self.low
        return low, self.ours if self.high is None else self.high

    def as_json(self) -> dict[str, str | float | None]:
        """Return the row by column, in the order of COLUMNS."""
        return {name: getattr(self, name) for name in COLUMNS}


@dataclass(frozen=True, slots=True)
class FigureData:
    """All rows of a figure, in the order of its CSV."""

    rows: tuple[Row, ...]

    def of(self, figure: str, series: str) -> tuple[Row, ...]:
        """Return the points of one series.

        Raises:
            KeyError: there is no such series in this figure.
        """
        found = tuple(row for row in self.rows if (row.figure, row.series) == (figure, series))
        if not found:
            raise KeyError(f"{figure} has no series {series!r}")
        return found

    def at(self, figure: str, series: str, point: str) -> Row:
        """Return one point.

        Raises:
            KeyError: there is no such point.
        """
        for row in self.of(figure, series):
            if row.point == point:
                return row
        raise KeyError(f"{figure} has no point {point!r} in series {series!r}")


def _say_nothing(_text: str) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much to simulate.

    Attributes:
        seeds: replications of each simulated point.
        first_seed: replication i runs with first_seed + i.
        days: simulated time of a replication.
        progress: told what is being computed.
    """

    seeds: int = 20
    first_seed: int = 1
    days: int = 365
    progress: Callable[[str], None] = _say_nothing

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds is {self.seeds}: give 1 or more")
        if self.days < 1:
            raise ValueError(f"days is {self.days}: give 1 or more")

    def all_seeds(self) -> range:
        """Return the seed of each replication."""
        return range(self.first_seed, self.first_seed + self.seeds)


def write_csv(data: FigureData, path: str | Path) -> None:
    """Write the rows; floats keep all their digits, so that reading gives the same rows.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path) as beside, beside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.as_json() for row in data.rows)


def read_csv(path: str | Path) -> FigureData:
    """Read what `write_csv` wrote; `difference` is computed anew.

    Raises:
        InputError: the file cannot be read, or a row is not one of a figure.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from error
    reader = csv.DictReader(io.StringIO(text))
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise InputError(f"expected the columns {','.join(COLUMNS)}", file=path, line=1)
    return FigureData(tuple(_rows(reader, path)))


def _rows(reader: csv.DictReader[str], path: str | Path) -> Iterator[Row]:
    names = [field.name for field in fields(Row)]
    for number, record in enumerate(reader, start=2):
        values: dict[str, str] = {name: record[name] or "" for name in names}
        try:
            yield Row(
                figure=values["figure"],
                series=values["series"],
                point=values["point"],
                ours=float(values["ours"]),
                unit=values["unit"],
                paper=_number(values["paper"]),
                note=values["note"],
                low=_number(values["low"]),
                high=_number(values["high"]),
            )
        except ValueError as error:
            raise InputError(str(error), file=path, line=number) from error


def _number(text: str) -> float | None:
    return float(text) if text else None


def xs(rows: Iterable[Row]) -> list[float]:
    """Return the points of a series as numbers."""
    return [float(row.point) for row in rows]


def ours(rows: Iterable[Row]) -> list[float]:
    """Return our values of a series."""
    return [row.ours for row in rows]


def marks(rows: Iterable[Row]) -> tuple[list[float], list[float]]:
    """Return points and values of the paper, where it has them."""
    known = [(float(row.point), row.paper) for row in rows if row.paper is not None]
    return [x for x, _ in known], [y for _, y in known]
