"""The figures by name, and how one is made: numbers first, then CSV, then the picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from castor_configs.errors import InputError
from castor_configs.plugins import Registry
from castor_traces.picture_style import picture_paths
from paper_figures import (
    fig07,
    fig08,
    fig09,
    fig10,
    fig11,
    fig12,
    fig13,
    fig14,
    fig15,
    fig16,
    table1,
    table2,
)
from paper_figures.figure_data import Effort, FigureData, read_csv, write_csv


@dataclass(frozen=True, slots=True)
class PaperFigure:
    """One figure: of the paper, or from outside.

    Attributes:
        title: what it shows.
        compute: returns its numbers.
        draw: writes PNG and PDF, from numbers alone, to a path without suffix.
    """

    title: str
    compute: Callable[[Effort], FigureData]
    draw: Callable[[FigureData, str | Path], None]


FIGURES: Final[Registry[PaperFigure]] = Registry(
    "figures",
    {
        "table1": PaperFigure("GPU and CPU memory of machines", table1.compute, table1.draw),
        "table2": PaperFigure("The models", table2.compute, table2.draw),
        "fig07": PaperFigure("Iteration time, 100B models", fig07.compute, fig07.draw),
        "fig08": PaperFigure("Idle and checkpoint time, 100B models", fig08.compute, fig08.draw),
        "fig09": PaperFigure("Recovery probability", fig09.compute, fig09.draw),
        "fig10": PaperFigure("Average wasted time", fig10.compute, fig10.draw),
        "fig11": PaperFigure("Reduction of checkpoint time", fig11.compute, fig11.draw),
        "fig12": PaperFigure("Checkpoints an hour", fig12.compute, fig12.draw),
        "fig13": PaperFigure("Iterations on slower links", fig13.compute, fig13.draw),
        "fig14": PaperFigure("Parts of a recovery", fig14.compute, fig14.draw),
        "fig15": PaperFigure("Effective training time ratio", fig15.compute, fig15.draw),
        "fig16": PaperFigure("Ways to interleave", fig16.compute, fig16.draw),
    },
    lambda found: isinstance(found, PaperFigure),
    "paper_figures.catalog.PaperFigure",
)
"""The paper's in its order, then those from outside."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure that has been made.

    Attributes:
        name: "fig09".
        data: its numbers.
        csv, png, pdf: its files.
    """

    name: str
    data: FigureData
    csv: Path
    png: Path
    pdf: Path


def chosen_figures(names: Iterable[str]) -> tuple[str, ...]:
    """Return the figures to make, in the paper's order; all of the paper's for no names.

    Raises:
        InputError: there is no figure of a name, or it is a plugin's that cannot be used.
    """
    wanted = set(names) or set(FIGURES.built_in)
    for name in sorted(wanted):
        FIGURES.choose(name, "--only")
    return tuple(name for name in FIGURES if name in wanted)


def make_figure(name: str, folder: str | Path, effort: Effort) -> Drawn:
    """Compute one figure and write its CSV, PNG and PDF into `folder`.

    Raises:
        InputError: the shipped configurations are missing.
        OSError: a file cannot be written.
    """
    data = FIGURES[name].compute(effort)
    stem = Path(folder) / name
    csv = stem.with_suffix(".csv")
    write_csv(data, csv)
    FIGURES[name].draw(data, stem)
    png, pdf = picture_paths(stem)
    return Drawn(name, data, csv, png, pdf)


def redraw_figure(name: str, csv: str | Path, path_stem: str | Path) -> FigureData:
    """Draw one figure from a CSV that `make_figure` wrote; the same numbers give the same bytes.

    Raises:
        InputError: the CSV cannot be read, or holds another figure.
        OSError: a file cannot be written.
    """
    data = read_csv(csv)
    try:
        FIGURES[name].draw(data, path_stem)
    except KeyError as error:
        raise InputError(f"holds no {name}: {error.args[0]}", file=csv) from error
    return data
