"""A sweep: one experiment at every point of a grid of parameters, in parallel and resumable.

The folder of a sweep holds points/KEY.json, a file for each finished point (see `sweep_points`),
and, once all are finished, sweep.csv and sweep.json. Both are made from the points' files alone,
in the order of the grid, so that neither the number of jobs nor an interruption changes a byte.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from castor_analysis.sweep.points import (
    PointTask,
    check_point,
    point_file,
    read_point,
    run_point,
)
from castor_analysis.workers import Workers
from castor_configs.atomic import output_folder
from castor_configs.errors import InputError

POINTS = "points"
_SHOWN_FAULTS = 8
_MOST_POINTS = 100_000
_PIECE = re.compile(r'"(?:[^"\\]|\\.)*"|\'[^\']*\'|.', re.DOTALL)


class SweepError(Exception):
    """Points that could be loaded failed as they ran; what is finished is kept."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A parameter and the values that it takes, as written.

    Attributes:
        key: dotted, as `--set` takes it.
        values: in the order in which they were given.
    """

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """One point of the grid: a value for each axis, in the order of the axes."""

    settings: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """The point as a person reads it: "replicas=2, failures.per_day=4"."""
        return ", ".join(f"{key}={value}" for key, value in self.settings)

    @property
    def overrides(self) -> tuple[str, ...]:
        """The point as `load_setup` takes it."""
        return tuple(f"{key}={value}" for key, value in self.settings)


@dataclass(frozen=True, slots=True)
class Sweep:
    """What to run.

    Attributes:
        experiment: its path, or the name of a shipped one.
        axes: the parameters that vary; the last one varies fastest.
        overrides: `key=value` for all points; an axis is laid over them.
    """

    experiment: str
    axes: tuple[Axis, ...]
    overrides: tuple[str, ...] = ()

    @property
    def points(self) -> tuple[SweepPoint, ...]:
        """The full grid, in order."""
        choices = [[(axis.key, value) for value in axis.values] for axis in self.axes]
        return tuple(SweepPoint(settings) for settings in itertools.product(*choices))


@dataclass(frozen=True, slots=True)
class SweepResult:
    """A finished sweep.

    Attributes:
        sweep: what was run.
        keys: of each point, in the order of the grid.
        documents: each point's file, in the same order.
        ran: how many points were run now.
        kept: how many points of the grid were there already.
    """

    sweep: Sweep
    keys: tuple[str, ...]
    documents: tuple[dict[str, Any], ...]
    ran: int
    kept: int


def parse_axis(text: str) -> Axis:
    """Read `key=value,value,...`. A comma inside brackets, braces or quotes separates nothing.

    Raises:
        InputError: no key, no value, a value twice, or brackets or quotes that do not match.
    """
    key, equals, written = text.partition("=")
    if not equals or not key.strip():
        raise InputError(
            f'expected key=value,value, such as replicas=1,2,3, not "{text}"', key="--over"
        )
    values = _split(written, text)
    if "" in values:
        raise InputError(f'a value is missing in "{text}"', key="--over")
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise InputError(f'{twice[0]} is there twice in "{text}"; give it once', key="--over")
    return Axis(key.strip(), tuple(values))


def make_sweep(experiment: str, axes: Sequence[str], overrides: Sequence[str] = ()) -> Sweep:
    """Return the sweep that the command line asks for.

    Args:
        experiment: a path or the name of a shipped one.
        axes: each `key=value,value,...`; at least one.
        overrides: each `key=value`.

    Raises:
        InputError: no axis, a parameter twice, or too large a grid.
    """
    parsed = tuple(parse_axis(text) for text in axes)
    if not parsed:
        raise InputError("say what to vary, such as --over failures.per_day=1,2,4,8", key="--over")
    keys = [axis.key for axis in parsed]
    fixed = {override.partition("=")[0].strip() for override in overrides}
    for key in keys:
        if keys.count(key) > 1:
            raise InputError(f"{key} is given twice; put all of its values in one", key="--over")
        if key in fixed:
            raise InputError(f"{key} is both fixed by --set and varied", key="--over")
    size = 1
    for axis in parsed:
        size *= len(axis.values)
    if size > _MOST_POINTS:
        raise InputError(
            f"the grid has {size:,} points; at most {_MOST_POINTS:,} are taken", key="--over"
        )
    return Sweep(experiment, parsed, tuple(overrides))


def run_sweep(
    sweep: Sweep,
    folder: Path,
    *,
    jobs: int = 1,
    begun: Callable[[int, int], None] | None = None,
    finished_one: Callable[[], None] | None = None,
) -> SweepResult:
    """Check every point, run those that are not there yet, and return all of them.

    Args:
        sweep: what to run.
        folder: of the sweep.
        jobs: processes at a time; a point runs in one.
        begun: called once with (points to run, points there already), when all are checked.
        finished_one: called after each point that was run.

    Raises:
        InputError: points whose configuration is wrong, by their names, or a folder that cannot
            be written; nothing has run then.
        SweepError: points that failed as they ran; all others were run.
    """
    points = sweep.points
    store = folder / POINTS
    tasks = [
        PointTask(sweep.experiment, sweep.overrides + point.overrides, store) for point in points
    ]
    with Workers(jobs) as workers:
        keys = _checked(points, tasks, workers)
        output_folder(folder)
        # Two spellings of one value, such as 1h and 60min, are one point.
        first = {key: index for index, key in reversed(list(enumerate(keys)))}
        missing = sorted(index for key, index in first.items() if read_point(store, key) is None)
        kept = sum(1 for key in keys if first[key] not in missing)
        if begun is not None:
            begun(len(missing), kept)
        faults: dict[int, str] = {}
        try:
            for done, outcome in workers.map(run_point, [tasks[index] for index in missing]):
                index = missing[done]
                if outcome.fault:
                    faults[index] = outcome.fault
                elif outcome.key != keys[index]:
                    faults[index] = "its configuration changed while the sweep ran; run it again"
                if finished_one is not None:
                    finished_one()
        except BrokenProcessPool as error:
            raise SweepError(
                "a worker process was killed, perhaps for want of memory; use fewer --jobs. "
                "Finished points are kept: the same command goes on from there"
            ) from error
    if faults:
        raise SweepError(_told(points, faults, "failed; all others are finished and kept"))
    documents = tuple(_finished(store, key) for key in keys)
    return SweepResult(sweep, keys, documents, ran=len(missing), kept=kept)


def _checked(
    points: Sequence[SweepPoint], tasks: Sequence[PointTask], workers: Workers
) -> tuple[str, ...]:
    keys = [""] * len(points)
    faults: dict[int, str] = {}
    for index, outcome in workers.map(check_point, tasks):
        keys[index] = outcome.key
        if outcome.fault:
            faults[index] = outcome.fault
    if len(faults) == len(points) and len(set(faults.values())) == 1:
        raise InputError(faults[0])  # no point's own fault: a wrong name, for instance
    if faults:
        raise InputError(_told(points, faults, "cannot be run, so none was"))
    return tuple(keys)


def _told(points: Sequence[SweepPoint], faults: dict[int, str], what: str) -> str:
    shown = [f"point {points[index].name}: {faults[index]}" for index in sorted(faults)]
    more = len(shown) - _SHOWN_FAULTS
    lines = shown[:_SHOWN_FAULTS] + ([f"and {more} more"] if more > 0 else [])
    return f"{len(faults)} of {len(points)} points {what}:\n  " + "\n  ".join(lines)


def _finished(store: Path, key: str) -> dict[str, Any]:
    document = read_point(store, key)
    if document is None:
        raise SweepError(f"{point_file(store, key)} has gone while the sweep ran; run it again")
    return document


def _split(written: str, whole: str) -> list[str]:
    """Split at commas outside of brackets, braces and quotes."""
    values, depth = [""], 0
    for piece in _PIECE.findall(written):
        if piece in "[{":
            depth += 1
        elif piece in "]}":
            depth -= 1
        if piece in "\"'" or depth < 0:
            raise InputError(f'quotes or brackets do not match in "{whole}"', key="--over")
        if piece == "," and depth == 0:
            values.append("")
        else:
            values[-1] += piece
    if depth:
        raise InputError(f'quotes or brackets do not match in "{whole}"', key="--over")
    return [value.strip() for value in values]
