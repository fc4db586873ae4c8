"""Table 2: the models, as configured here, and the size that their shape gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from castor_configs.model import load_model
from paper_figures.calibration import MODELS
from paper_figures.figure_data import Effort, FigureData, Row
from paper_figures.published import published_values
from paper_figures.table_picture import draw_table

FIGURE = "table2"
PARAMETERS = "Parameters"
SHAPE = ("Hidden", "Intermediate", "Layers", "Heads")
_MISPRINT = (
    "Table 2's shape gives 3.75 billion; its 46 layers are probably a misprint (125 would give "
    "10), and the measured times fit 10 billion"
)


def compute(effort: Effort) -> FigureData:
    """Return each model's shape from configs/models, and the parameters that it comes to."""
    effort.progress(FIGURE)
    return FigureData(tuple(_rows()))


def _rows() -> Iterator[Row]:
    published = published_values(FIGURE)
    models = [load_model(name) for cluster in ("p3dn", "p4d") for name in MODELS[cluster]]
    for series in SHAPE:
        for model in models:
            ours = float(getattr(model, series.lower()))
            yield Row(FIGURE, series, model.name, ours, "", published[series, model.name].value)
    for model in models:
        yield Row(
            figure=FIGURE,
            series=PARAMETERS,
            point=model.name,
            ours=model.shape_parameters / 1e9,
            unit="billion",
            paper=published[PARAMETERS, model.name].value,
            note=_MISPRINT if model.stated_parameters else "",
        )


def draw(data: FigureData, path_stem: str | Path) -> None:
    """Draw the table; writes PNG and PDF."""
    columns = {**dict.fromkeys(SHAPE, "{:.0f}"), PARAMETERS: "{:.1f} B"}
    widths = (0.21, 0.11, 0.18, 0.11, 0.1, 0.29)
    draw_table(data, FIGURE, columns, path_stem, widths=widths)
