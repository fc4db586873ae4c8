"""Draw a trace: who fails when, how many are down, how the gaps and the repairs are spread."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from castor_traces.downtime import machines_down
from castor_traces.picture_style import BLACK, BLUE, GREEN, VERMILION, picture, picture_paths
from castor_traces.statistics import interarrival_gaps_s, interarrival_statistics
from castor_traces.trace import NS_PER_S, Trace, TraceArrays

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HEIGHT_IN: Final = 7.6

_UNITS: Final = ((86_400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
_TICKS_S: Final = (
    (1e-3, "1 ms"),
    (1e-2, "10 ms"),
    (0.1, "0.1 s"),
    (1.0, "1 s"),
    (10.0, "10 s"),
    (60.0, "1 min"),
    (600.0, "10 min"),
    (3600.0, "1 h"),
    (86_400.0, "1 d"),
    (864_000.0, "10 d"),
    (8_640_000.0, "100 d"),
    (86_400_000.0, "1000 d"),
)


def plot_trace(trace: Trace, path_stem: str | Path) -> tuple[Path, Path]:
    """Draw four panels, one below the other, and write them as PNG and PDF.

    From the top: each failure at its time and machine; the number of machines down over time; the
    distribution of the gaps between failures, with the Weibull and the exponential fit; and that of
    the repair times. A panel that the trace has no data for says so.

    Args:
        trace: any trace, also one without failures.
        path_stem: where to write; ".png" and ".pdf" are appended to the name.

    Returns:
        The paths of the PNG and the PDF.

    Raises:
        OSError: if a file cannot be written.
    """
    with picture(path_stem, _HEIGHT_IN) as figure:
        _draw(figure, trace)
    return picture_paths(path_stem)


def _draw(figure: Figure, trace: Trace) -> None:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 - as above

    raster, down, gaps, repairs = figure.subplots(
        4, 1, gridspec_kw={"height_ratios": [1.5, 1.0, 1.2, 1.2]}
    )
    figure.suptitle(
        f"{trace.name}: {len(trace.failures):,} failures, {trace.machines:,} machines", fontsize=8.5
    )
    arrays = trace.arrays()
    unit_s, unit = _unit_of(trace.span_ns / NS_PER_S)
    end = max(trace.span_ns / NS_PER_S / unit_s, 1e-9)
    _draw_raster(raster, trace, arrays, unit_s)
    _draw_down(down, trace, arrays, unit_s)
    for axes in (raster, down):
        axes.set_xlim(0, end)
        axes.set_xlabel(f"Time ({unit})")
    for axes in (raster, down):
        if axes.get_yticks().size:
            axes.yaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    _draw_gaps(gaps, trace)
    _draw_repairs(repairs, arrays)


def _unit_of(span_s: float) -> tuple[float, str]:
    """Return the largest unit that the span holds three of."""
    for unit_s, unit in _UNITS:
        if span_s >= 3 * unit_s:
            return unit_s, unit
    return _UNITS[-1]


def _draw_raster(axes: Axes, trace: Trace, arrays: TraceArrays, unit_s: float) -> None:
    axes.set_title("Each failure")
    axes.set_ylabel("Machine")
    time = arrays.time_ns / NS_PER_S / unit_s
    named = arrays.machine >= 0
    size = 7.0 if len(time) < 2000 else 2.0 if len(time) < 20_000 else 0.4
    kinds = (
        ("hardware", arrays.hardware, BLUE, "o"),
        ("software", ~arrays.hardware, VERMILION, "x"),
    )
    for kind, chosen, colour, marker in kinds:
        rows = chosen & named
        if rows.any():
            axes.scatter(
                time[rows],
                arrays.machine[rows],
                s=size if marker == "o" else 1.6 * size,
                c=colour,
                marker=marker,
                linewidths=0.0 if marker == "o" else 0.7,
                label=f"{kind} ({int(chosen.sum()):,})",
                rasterized=len(time) > 2000,
            )
    if not named.all():
        # Failures of "any" machine have no height: ticks along the bottom.
        axes.scatter(
            time[~named],
            np.zeros(int((~named).sum())),
            s=14.0,
            c=BLACK,
            marker="|",
            linewidths=0.5,
            transform=axes.get_xaxis_transform(),
            clip_on=False,
            label=f"any machine ({int((~named).sum()):,})",
        )
    axes.set_ylim(-0.5, trace.machines - 0.5)
    if trace.failures:
        axes.legend(
            loc="lower right", bbox_to_anchor=(1.0, 1.02), ncols=3, borderaxespad=0.0,
            columnspacing=1.0, handletextpad=0.3, markerscale=(14.0 / size) ** 0.5 / 1.5,
        )  # fmt: skip
    else:
        _say(axes, "no failures")


def _draw_down(axes: Axes, trace: Trace, arrays: TraceArrays, unit_s: float) -> None:
    axes.set_title("Machines down")
    axes.set_ylabel("Machines")
    if trace.failures and not (arrays.duration_ns >= 0).any():
        _say(axes, "the trace gives no durations")
        return
    down = machines_down(trace)
    time = np.append(down.time_ns, trace.span_ns) / NS_PER_S / unit_s
    count = np.append(down.down, down.down[-1])
    axes.fill_between(time, count, step="post", color=BLUE, alpha=0.35, linewidth=0.0)
    axes.step(time, count, where="post", color=BLUE, linewidth=0.7)
    if down.mean is not None:
        axes.axhline(down.mean, color=BLACK, linewidth=0.9, linestyle="--")
        axes.set_title(f"mean {down.mean:.3g}, most {down.maximum}", loc="right", fontsize=7.0)
    axes.set_ylim(0, max(1.0, 1.05 * down.maximum))


def _draw_gaps(axes: Axes, trace: Trace) -> None:
    axes.set_title("Gaps between failures of the cluster")
    axes.set_ylabel("Share of gaps below")
    gaps_s = interarrival_gaps_s(trace)
    fit = interarrival_statistics(trace)
    if gaps_s.size < 2 or fit.mean_s is None:
        _say(axes, "fewer than two gaps")
        axes.set_xticks([])
        return
    low, high = _draw_cumulated(axes, gaps_s, f"trace ({gaps_s.size:,} gaps)")
    x = np.geomspace(low, high, 300)
    axes.plot(x, -np.expm1(-x / fit.mean_s), color=GREEN, linestyle=":", label="exponential")
    if fit.weibull_shape is not None and fit.weibull_scale_s is not None:
        axes.plot(
            x,
            -np.expm1(-((x / fit.weibull_scale_s) ** fit.weibull_shape)),
            color=VERMILION,
            linestyle="--",
            label=f"Weibull, shape {fit.weibull_shape:.2f}\n"
            f"(95 %: {fit.ci95_low:.2f} to {fit.ci95_high:.2f})",
        )
    axes.legend(loc="upper left", borderaxespad=0.2)


def _draw_repairs(axes: Axes, arrays: TraceArrays) -> None:
    axes.set_title("Repair times")
    axes.set_ylabel("Share of repairs below")
    known_s = arrays.duration_ns[arrays.duration_ns >= 0] / NS_PER_S
    positive = known_s[known_s > 0]
    if positive.size == 0:
        _say(axes, "all are zero" if known_s.size else "the trace gives no durations")
        axes.set_xticks([])
        return
    zero = "" if positive.size == known_s.size else f", {known_s.size - positive.size} of zero"
    _draw_cumulated(axes, positive, f"trace ({known_s.size:,}{zero})", below=known_s.size)
    for value, name, colour, style in (
        (float(np.median(known_s)), "median", VERMILION, "--"),
        (float(known_s.mean()), "mean", GREEN, ":"),
    ):
        if value > 0:
            axes.axvline(value, color=colour, linestyle=style, label=f"{name} {_spoken(value)}")
    axes.legend(loc="upper left", borderaxespad=0.2)


def _draw_cumulated(
    axes: Axes, values_s: NDArray[np.float64], label: str, *, below: int | None = None
) -> tuple[float, float]:
    """Draw the empirical distribution over a logarithmic axis of time; return the axis' ends.

    Args:
        axes: where.
        values_s: positive times in seconds.
        label: for the legend.
        below: how many values there are with the zeros, which no logarithmic axis shows.
    """
    ordered = np.sort(values_s)
    total = len(ordered) if below is None else below
    low, high = float(ordered[0]) / 1.5, float(ordered[-1]) * 1.5
    x = np.concatenate([[low], ordered, [high]])
    missing = total - len(ordered)
    share = np.concatenate([[missing], missing + np.arange(1, len(ordered) + 1), [total]]) / total
    axes.step(x, share, where="post", color=BLUE, label=label)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(0, 1.02)
    ticks = [(s, text) for s, text in _TICKS_S if low <= s <= high]
    if ticks:
        while len(ticks) > 7:
            ticks = ticks[::2]
        axes.set_xticks([s for s, _ in ticks], [text for _, text in ticks])
        axes.minorticks_off()
    axes.grid(visible=True, linewidth=0.3, alpha=0.6)
    return low, high


def _spoken(seconds: float) -> str:
    for unit_s, unit in ((86_400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= unit_s:
            return f"{seconds / unit_s:.3g} {unit}"
    return f"{seconds:.3g} s"


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color=BLACK)
    axes.set_yticks([])
