"""A table as a picture: ours, with the paper's value in brackets where it is another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from castor_traces.picture_style import picture
from paper_figures.figure_data import FigureData, Row


def draw_table(
    data: FigureData,
    figure: str,
    columns: Mapping[str, str],
    path_stem: str | Path,
    *,
    widths: Sequence[float],
) -> None:
    """Draw points as rows and series as columns; writes PNG and PDF.

    Args:
        data: the numbers.
        figure: of the rows.
        columns: the format of each series, by its name.
        path_stem: where to write.
        widths: of the name and of each column, in shares of the picture.
    """
    points = [row.point for row in data.of(figure, next(iter(columns)))]
    cells = [
        [point, *(_cell(data.at(figure, series, point), form) for series, form in columns.items())]
        for point in points
    ]
    differs = any("(" in cell for line in cells for cell in line[1:])
    with picture(path_stem, 0.35 + 0.2 * (len(points) + 1)) as drawn:
        axes = drawn.subplots()
        axes.axis("off")
        table = axes.table(
            cells,
            colLabels=["(paper)" if differs else "", *columns],
            colWidths=list(widths),
            loc="center",
            cellLoc="right",
            edges="horizontal",
        )
        table.auto_set_font_size(False)
        table.set_fontsize(6.5)
        table.scale(1.0, 1.15)
        for (_, column), cell in table.get_celld().items():
            cell.set_linewidth(0.4)
            if column == 0:
                cell.set_text_props(ha="left")


def _cell(row: Row, form: str) -> str:
    ours = form.format(row.ours)
    if row.paper is None or form.format(row.paper) == ours:
        return ours
    return f"{ours} ({form.format(row.paper)})"
