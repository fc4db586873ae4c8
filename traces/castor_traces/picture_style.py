"""One style for every picture: sizes, colours, and files that come out the same each time.

A picture is drawn at the width that it is printed at, one column of a two-column paper, so that
its text has its final size. Series differ by colour and by marker or dash, so that a picture also
reads in grey.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from castor_configs.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours: told apart by people with any of the common colour blindnesses.
BLACK: Final = "#000000"
ORANGE: Final = "#E69F00"
SKY_BLUE: Final = "#56B4E9"
GREEN: Final = "#009E73"
YELLOW: Final = "#F0E442"
BLUE: Final = "#0072B2"
VERMILION: Final = "#D55E00"
PURPLE: Final = "#CC79A7"
GREY: Final = "#777777"

COLUMN_WIDTH_IN: Final = 3.4
"""One column of a two-column paper."""

FORMATS: Final = ("png", "pdf")

STYLE: Final[Mapping[str, object]] = MappingProxyType(
    {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same everywhere
        "font.size": 7.5,
        "axes.titlesize": 8.0,
        "axes.titlelocation": "left",
        "axes.labelsize": 7.5,
        "xtick.labelsize": 7.0,
        "ytick.labelsize": 7.0,
        "legend.fontsize": 7.0,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.6,
        "axes.axisbelow": True,
        "lines.linewidth": 1.2,
        "lines.markersize": 4.0,
        "grid.linewidth": 0.3,
        "grid.alpha": 0.6,
        "hatch.linewidth": 0.5,
        "legend.frameon": False,
        "legend.handlelength": 1.6,
        "figure.dpi": 200,
        "savefig.dpi": 200,
        # Letters stay letters: 42 embeds TrueType, which journals accept and a search finds.
        "pdf.fonttype": 42,
        "svg.fonttype": "none",
        "svg.hashsalt": "castor",
    }
)


@contextmanager
def figure_in_style(width_in: float, height_in: float) -> Iterator[Figure]:
    """Yield an empty figure; everything drawn in the block has the house style.

    Args:
        width_in: width in inches.
        height_in: height in inches.
    """
    # matplotlib takes half a second, which a command that draws nothing need not pay.
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    # Any: matplotlib's stubs list its keys, another list in each release.
    style: Any = dict(STYLE)
    with mpl.rc_context(style):
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format that the path's suffix names: .png, .pdf or .svg.

    No file holds a date, so that the same drawing gives the same bytes. It is written whole or not
    at all. Call it inside the block of `figure_in_style`.

    Raises:
        OSError: the file cannot be written.
        KeyError: another suffix.
    """
    undated: dict[str, dict[str, Any]] = {
        "png": {"Software": None},
        "pdf": {"CreationDate": None},
        "svg": {"Date": None},
    }
    kind = path.suffix[1:]
    metadata = undated[kind]
    with replacing(path) as beside:
        figure.savefig(beside, format=kind, metadata=metadata)


@contextmanager
def picture(path_stem: str | Path, height_in: float) -> Iterator[Figure]:
    """Yield an empty figure of column width; write it as PNG and PDF once the block ends.

    Args:
        path_stem: where to write; ".png" and ".pdf" are appended to the name.
        height_in: height in inches.

    Raises:
        OSError: a file cannot be written.
    """
    with figure_in_style(COLUMN_WIDTH_IN, height_in) as figure:
        yield figure
        for path in picture_paths(path_stem):
            save(figure, path)


def picture_paths(path_stem: str | Path) -> tuple[Path, Path]:
    """Return the PNG and the PDF that `picture` writes."""
    stem = Path(path_stem)
    png, pdf = (stem.with_name(f"{stem.name}.{kind}") for kind in FORMATS)
    return png, pdf
