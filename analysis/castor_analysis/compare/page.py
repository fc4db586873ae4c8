"""compare.html: a comparison for a person, in one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, Final

from castor_analysis.compare import page_pictures as pictures
from castor_analysis.compare.comparison import Comparison
from castor_analysis.compare.measured_run import MeasuredRun
from castor_analysis.compare.points import SHARE, Point, S
from castor_analysis.compare.report import telling_keys
from castor_analysis.page_style import html_page
from castor_configs.readable import format_seconds

_PACED_LAYERS: Final = "--paced-layer-ms"
"""The option of Castor's own programs that replaces arithmetic by waits."""

_NAMES: Final[Mapping[str, str]] = {
    "iteration_s": "Iteration",
    "idle_s": "Network idle in an iteration",
    "checkpoint_network_s": "Checkpoint on the network",
    "checkpoint_complete_s": "Checkpoint complete in CPU memory",
    "ettr": "Effective training time ratio",
    "iterations_lost": "Iterations lost",
}
_FULL_BAR: Final = 0.20
"""Error whose bar has full length."""


def comparison_page(comparison: Comparison, document: Mapping[str, Any]) -> str:
    """Return the page.

    Args:
        comparison: to show.
        document: of it, as compare.json holds it.
    """
    body = [
        _head(comparison, document),
        _pictures(comparison),
        _orders(comparison),
        _held_out(comparison),
        _fitted(comparison),
        _origin(comparison, document),
    ]
    return html_page("Castor: simulated against measured", "".join(body))


def _head(comparison: Comparison, document: Mapping[str, Any]) -> str:
    right = sum(order.right for order in comparison.orders)
    settings = {
        tuple(sorted((k, str(v)) for k, v in point.setting.items()))
        for point in comparison.held_out
    }
    tiles = [
        (_percent(comparison.median_error), "median error", comparison.median_error, 0.05),
        (_percent(comparison.worst_error), "worst error", comparison.worst_error, 0.15),
        (str(len(comparison.held_out)), f"held-out points in {len(settings)} settings", None, 0.0),
        (f"{right} of {len(comparison.orders)}", "orders of the schemes right", None, 0.0),
        (str(len(comparison.calibrated_on)), f"of {len(comparison.runs)} runs calibrated", None, 0),
    ]
    shown = "".join(
        f'<div class="tile"><b class="{_grade(error, goal)}">{escape(value)}</b>'
        f"<span>{escape(label)}</span></div>"
        for value, label, error, goal in tiles
    )
    return (
        "<h1>Simulated against measured</h1>\n"
        f'<p class="dim">{escape(str(document["date"]))}, Castor '
        f"{escape(str(document['versions'].get('castor')))}, commit "
        f"{escape(str(document['versions'].get('commit')))}</p>\n"
        "<p>Real DeepSpeed ZeRO-3 runs, and what the simulator says of them. It was calibrated on "
        "the few runs named at the end; all that is counted here are runs that it had not "
        f"seen.{_paced(comparison.runs)}</p>\n"
        f'<div class="tiles">{shown}</div>\n'
    )


def _paced(runs: Sequence[MeasuredRun]) -> str:
    """Say in which runs waits stood for layers, and in which for a GPU's copy engine."""
    copies = [run for run in runs if run.setting.paced_copy_bps]
    layers = [
        run
        for run in runs
        if _PACED_LAYERS in dict(run.setting.arguments)
        or (run.result.compute == "paced" and not run.setting.paced_copy_bps)
    ]
    said = ""
    if layers:
        said += (
            f" Layers were paced{_share(layers, runs)}: they waited as long as a layer takes "
            "instead of being computed, so that the processor was as free as it is beside a GPU."
        )
    if copies:
        said += (
            f" Copies to CPU memory were paced{_share(copies, runs)}: they took as long as at a "
            "stated rate, in place of a GPU's copy engine."
        )
    return said


def _share(some: Sequence[MeasuredRun], runs: Sequence[MeasuredRun]) -> str:
    return "" if len(some) == len(runs) else f" in {len(some)} of {len(runs)} runs"


def _pictures(comparison: Comparison) -> str:
    parts = [
        "<h2>All held-out points</h2>\n<p>Bands: 5 % and 15 %.</p>\n",
        f'<div class="pair"><div class="card">{pictures.scatter(comparison.held_out)}</div>\n'
        f'<div class="card">{pictures.histogram(comparison.held_out)}</div></div>\n',
        f'<div class="card">{_summary(comparison)}</div>\n',
    ]
    if comparison.cases:
        parts.append(
            "<h2>The schemes</h2>\n<p>Time of an iteration with a checkpoint in each. Dots are "
            "single iterations of all repetitions; empty bars were calibrated on.</p>\n"
            f'<div class="card">{pictures.scheme_bars(comparison.cases)}</div>\n'
        )
    timelines = [pictures.timelines(case) for case in pictures.pictured_cases(comparison)]
    if timelines:
        parts.append(
            "<h2>One iteration</h2>\n<p>Measured on rank 0 while it was profiled, that is without "
            "checkpoints, above the simulated iteration of the same setting. Green: gathering "
            "parameters; light blue: reducing gradients; red: checkpoint chunks; grey: computing; "
            "black: the update; orange and purple: copies to CPU memory, of chunks that came and "
            "of a rank's own part.</p>\n"
            + "".join(f'<div class="card">{drawing}</div>\n' for drawing in timelines)
        )
    recovery = pictures.recovery_bars(comparison.held_out)
    if recovery:
        parts.append(f'<h2>Recoveries</h2>\n<div class="card">{recovery}</div>\n')
    return "".join(parts)


def _summary(comparison: Comparison) -> str:
    rows = [
        [
            escape(quantity_name(quantity)),
            str(row["points"]),
            _graded(row["median_error"], 0.05),
            _graded(row["worst_error"], 0.15),
        ]
        for quantity, row in comparison.by_quantity().items()
    ]
    return _table(["Quantity", ">points", ">median error", ">worst error"], rows)


def _orders(comparison: Comparison) -> str:
    if not comparison.orders:
        return ""
    keys = [
        key
        for key in ("link", "model", "replicas", "mu", "buffer")
        if len({order.setting.get(key) for order in comparison.orders}) > 1 or key == "link"
    ]
    rows = [
        [
            *(escape(str(order.setting.get(key, ""))) for key in keys),
            escape(", ".join(order.measured)),
            escape(", ".join(order.simulated)),
            '<span class="good">right</span>'
            if order.right
            else '<span class="bad">wrong: '
            + escape("; ".join(" and ".join(pair) for pair in order.wrong))
            + "</span>",
        ]
        for order in comparison.orders
    ]
    return (
        "<h2>Order of the schemes</h2>\n<p>Fastest first. Schemes within 1 % of each other are a "
        "tie, and a tie may be told either way.</p>\n"
        f'<div class="card">{_table([*keys, "measured", "simulated", ""], rows)}</div>\n'
    )


def _held_out(comparison: Comparison) -> str:
    parts = ["<h2>Every point</h2>\n"]
    for quantity in comparison.by_quantity():
        points = [point for point in comparison.held_out if point.quantity == quantity]
        parts.append(
            f'<div class="card"><b>{escape(quantity_name(quantity))}</b>{_point_table(points)}'
            "</div>\n"
        )
    return "".join(parts)


def _point_table(points: Sequence[Point]) -> str:
    keys = telling_keys(points)
    rows = [
        [
            *(escape(str(point.setting.get(key, ""))) for key in keys),
            f">{_value(point, point.measured)}",
            f">{_value(point, point.spread[0])} to {_value(point, point.spread[1])}",
            f">{point.samples}",
            f">{_value(point, point.simulated)}",
            _error_cell(point),
        ]
        for point in points
    ]
    heads = [*keys, ">measured", ">10 to 90 %", ">samples", ">simulated", "error"]
    return _table(heads, rows)


def _fitted(comparison: Comparison) -> str:
    if not comparison.fitted:
        return ""
    return (
        "<details><summary>Runs that were calibrated on: how well the fit reproduces them</summary>"
        f'<div class="card">{_by_quantity(comparison.fitted)}</div></details>\n'
    )


def _by_quantity(points: Sequence[Point]) -> str:
    keys = telling_keys(points)
    rows = [
        [
            escape(quantity_name(point.quantity)),
            *(escape(str(point.setting.get(key, ""))) for key in keys),
            f">{_value(point, point.measured)}",
            f">{_value(point, point.simulated)}",
            _error_cell(point),
        ]
        for point in points
    ]
    return _table(["Quantity", *keys, ">measured", ">simulated", "error"], rows)


def _origin(comparison: Comparison, document: Mapping[str, Any]) -> str:
    left_out = "".join(
        f"<li>{escape(what)}: {escape(why)}</li>" for what, why in comparison.left_out.items()
    )
    parts = [
        "<h2>How to get this again</h2>\n",
        f"<p>Calibrated on: {escape(', '.join(comparison.calibrated_on) or 'no run')}.</p>\n",
        f"<p>Left out:</p><ul>{left_out}</ul>\n" if left_out else "",
        f'<p class="dim">Machine: {_words(document["machine"])}. Versions: '
        f"{_words(document['versions'])}.</p>\n",
        "<details><summary>Every command</summary><pre>",
        "\n".join(escape(command) for command in document["commands"] if command),
        "</pre></details>\n",
    ]
    return "".join(parts)


def quantity_name(quantity: str) -> str:
    """Return a quantity's name for people."""
    if quantity in _NAMES:
        return _NAMES[quantity]
    words = quantity.removesuffix("_s").replace("_", " ")
    return words[:1].upper() + words[1:]


def _value(point: Point, value: float) -> str:
    if point.unit == S:
        return escape(format_seconds(value))
    return f"{value:.1%}" if point.unit == SHARE else f"{value:g}"


def _percent(error: float | None) -> str:
    return "-" if error is None else f"{100 * error:.1f} %"


def _grade(error: float | None, goal: float) -> str:
    if error is None:
        return ""
    if error < goal:
        return "good"
    return "fair" if error < 2 * goal else "bad"


def _graded(error: float | None, goal: float) -> str:
    return f'><span class="{_grade(error, goal)}">{_percent(error)}</span>'


def _error_cell(point: Point) -> str:
    if point.error is None:
        return '<span class="bad">expected, and not there</span>'
    size = abs(point.error)
    grade = "good" if size < 0.05 else "fair" if size < 0.15 else "bad"
    width = round(100 * min(1.0, size / _FULL_BAR))
    return (
        f'<span class="{grade}">{100 * point.error:+.1f} %'
        f'<span class="bar"><i style="width:{width}%"></i></span></span>'
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; a text that begins with ">" stands on the right of its column."""

    def cell(tag: str, text: str) -> str:
        right = text.startswith(">")
        mark = ' class="n"' if right else ""
        return f"<{tag}{mark}>{text[1:] if right else text}</{tag}>"

    head = "".join(cell("th", text) for text in heads)
    body = "".join(f"<tr>{''.join(cell('td', text) for text in row)}</tr>\n" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"


def _words(values: Mapping[str, Any]) -> str:
    words = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            words.append(_words(value))
        else:
            words.append(f"{escape(name.replace('_', ' '))} {escape(str(value))}")
    return ", ".join(word for word in words if word)
