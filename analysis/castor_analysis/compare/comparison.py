"""Real runs beside their predictions: which calibrate, which are held out, and what comes of it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from castor_analysis.compare.failure_runs import FailureModel, Predict
from castor_analysis.compare.measured_run import ITERATION, QUANTITIES, MeasuredRun
from castor_analysis.compare.points import Point, S, absolute_errors, point_of_samples
from castor_analysis.compare.prediction import (
    FromProfile,
    Prediction,
    Predictor,
    can_predict,
    predict,
)
from castor_analysis.compare.scheme_order import SchemeOrder, scheme_orders
from castor_analysis.compare.settings import Setting, model_names
from castor_configs.errors import InputError
from castor_policy.interleaving import NONE
from castor_sim.iteration.measured import MeasuredProfile
from castor_sim.iteration.measured_steps import Issue

_STATES: Final = ("pipelined", "unpipelined", "blocking", "naive")
"""Schemes that may say what a checkpoint costs beside its transfers, the best known first."""

Model = tuple[str, tuple[tuple[str, str], ...]]
Calibrate = Callable[[Sequence[MeasuredRun]], MeasuredProfile]
FitFailures = Callable[[Sequence[MeasuredRun], Predict], FailureModel]
"""Fits recoveries on runs of one setting, given what predicts an iteration in any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """All runs of one setting, and what was expected of them.

    Attributes:
        setting: of all of them.
        model: its name.
        runs: repetitions.
        prediction: of an iteration.
        fitted: whether the simulator has seen them.
    """

    setting: Setting
    model: str
    runs: tuple[MeasuredRun, ...]
    prediction: Prediction
    fitted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What a comparison comes to.

    Attributes:
        held_out: checks: the simulator had not seen these runs.
        fitted: residuals of the runs that it was calibrated on; they count as nothing.
        orders: of the schemes, setting by setting.
        cases: the iterations behind the points.
        runs: all runs.
        calibrated_on: names of the runs that anything was fitted on.
        left_out: run or quantity -> why it is in no point.
    """

    held_out: tuple[Point, ...]
    fitted: tuple[Point, ...]
    orders: tuple[SchemeOrder, ...]
    cases: tuple[Case, ...]
    runs: tuple[MeasuredRun, ...]
    calibrated_on: tuple[str, ...]
    left_out: Mapping[str, str]

    @property
    def median_error(self) -> float | None:
        """Median size of the error over all held-out points that have one."""
        errors = absolute_errors(self.held_out)
        return statistics.median(errors) if errors else None

    @property
    def worst_error(self) -> float | None:
        """Largest size of an error over all held-out points that have one."""
        return max(absolute_errors(self.held_out), default=None)

    def by_quantity(self) -> dict[str, dict[str, Any]]:
        """Return for each quantity how many held-out points there are, and how far they are off."""
        found: dict[str, list[Point]] = {}
        for point in self.held_out:
            found.setdefault(point.quantity, []).append(point)
        return {
            quantity: {
                "points": len(points),
                "median_error": statistics.median(errors) if errors else None,
                "worst_error": max(errors, default=None),
            }
            for quantity, points in found.items()
            for errors in [absolute_errors(points)]
        }


def compare_runs(
    runs: Sequence[MeasuredRun],
    *,
    calibrate: Calibrate,
    profiles: Sequence[MeasuredProfile] = (),
    predictor: Predictor | None = None,
    fit_failures: FitFailures = FailureModel.fitted,
) -> Comparison:
    """Predict runs from as few of them as possible, and set both beside each other.

    Args:
        runs: of any settings; several of one are repetitions.
        calibrate: makes a profile of a model's calibrating runs.
        profiles: use these instead; the runs that they were measured in are no checks.
        predictor: predicts every run, from neither.
        fit_failures: makes the model of recoveries.

    Raises:
        InputError: there is nothing to calibrate on, a profile fits no run, or two runs have one
            name.
    """
    _check_names(runs)
    names = model_names(run.setting for run in runs)
    quiet = [run for run in runs if not run.failed and not run.replays]
    left_out: dict[str, str] = {}
    predictors: dict[Model, Predictor]
    seen: frozenset[str] = frozenset()
    if predictor is not None:
        predictors = dict.fromkeys(names, predictor)
    elif profiles:
        predictors = _matched(profiles, quiet)
        seen = frozenset(run.name for run in quiet if _is_source(run, profiles))
    else:
        chosen = calibrating_runs(quiet)
        predictors = {model: FromProfile(calibrate(found)) for model, found in chosen.items()}
        seen = frozenset(run.name for found in chosen.values() for run in found)
    cases = _cases(quiet, names, predictors, seen, left_out)
    fitted = [point for case in cases if case.fitted for point in _points(case, left_out)]
    held_out = [point for case in cases if not case.fitted for point in _points(case, left_out)]
    orders = scheme_orders([*fitted, *held_out])
    broken = [run for run in runs if run.failed and not run.replays]
    first = calibrating_failures(broken)
    if first:

        def expected(setting: Setting) -> Mapping[str, float]:
            if setting.model not in predictors:
                raise ValueError(f"no profile is of {names[setting.model]}")
            return predict(predictors[setting.model], setting).values

        held_out += _failure_points(runs, first, names, expected, fit_failures, left_out)
    else:
        for run in runs:
            if run.replays:
                left_out[run.name] = "no run with single failures says what a recovery takes"
    used = seen | {run.name for run in first}
    return Comparison(
        held_out=tuple(held_out),
        fitted=tuple(fitted),
        orders=tuple(orders),
        cases=tuple(cases),
        runs=tuple(runs),
        calibrated_on=tuple(sorted(used)),
        left_out=left_out,
    )


def calibrating_runs(quiet: Sequence[MeasuredRun]) -> dict[Model, list[MeasuredRun]]:
    """Return for each model the runs at the middle of its bandwidths that calibrate it.

    Those without checkpoints, and those of one scheme, the first of `_STATES`: without a checkpoint
    nobody sees how large it is and what it costs beside its transfers. Of an even number of
    bandwidths, the lower one of the middle two.

    Raises:
        InputError: a model has no run without checkpoints.
    """
    chosen: dict[Model, list[MeasuredRun]] = {}
    for model, name in sorted(model_names(run.setting for run in quiet).items()):
        of_model = [run for run in quiet if run.setting.model == model]
        plain = [run for run in of_model if run.setting.scheme == NONE]
        if not plain:
            raise InputError(
                f"no run of {name} without checkpoints (castor train --scheme none) to calibrate "
                "on: add one, or give --profile"
            )
        middle = _middle(plain)
        chosen[model] = [run for run in plain if run.setting.link_bps == middle]
        for scheme in _STATES:
            alike = [
                run
                for run in of_model
                if run.setting.scheme == scheme and run.setting.link_bps == middle
            ]
            if alike:
                first = alike[0].setting
                chosen[model] += [run for run in alike if run.setting == first]
                break
    return chosen


def calibrating_failures(broken: Sequence[MeasuredRun]) -> list[MeasuredRun]:
    """Return the runs with failures of one setting: smallest checkpoint, then middle bandwidth."""
    if not broken:
        return []
    smallest = min(broken, key=lambda run: (run.checkpoint_bytes, run.setting.model)).setting.model
    of_model = [run for run in broken if run.setting.model == smallest]
    middle = _middle(of_model)
    setting = next(run.setting for run in of_model if run.setting.link_bps == middle)
    return [run for run in of_model if run.setting == setting]


def _failure_points(
    runs: Sequence[MeasuredRun],
    first: Sequence[MeasuredRun],
    names: Mapping[Model, str],
    expected: Predict,
    fit_failures: FitFailures,
    left_out: dict[str, str],
) -> list[Point]:
    """Return the points of recoveries and of replayed traces; what is in none is told."""
    try:
        model = fit_failures(first, expected)
        # A replayed trace's failures are outages as good as any.
        rest = [run for run in runs if (run.failed or run.replays) and run not in first]
        points, unlike = model.recovery_points(rest, names)
    except ValueError as error:
        raise InputError(str(error), file=first[0].folder.path) from error
    for one in (*model.left_out, *unlike):
        left_out[f"{one.run}, generation {one.generation}"] = one.why
    for run in runs:
        if run.replays:
            try:
                points += model.replay_points(run, names)
            except ValueError as error:
                left_out[run.name] = str(error)
    return points


def _middle(runs: Sequence[MeasuredRun]) -> int:
    links = sorted({run.setting.link_bps for run in runs})
    return links[(len(links) - 1) // 2]


def _matched(
    profiles: Sequence[MeasuredProfile], quiet: Sequence[MeasuredRun]
) -> dict[Model, Predictor]:
    """Return the profile of each model: the one with the very same collectives."""
    by_collectives = {_collectives(profile): profile for profile in profiles}
    found: dict[Model, Predictor] = {}
    for run in quiet:
        own = tuple((one.operation, one.size_bytes) for one in run.collectives)
        if own in by_collectives:
            found.setdefault(run.setting.model, FromProfile(by_collectives[own]))
    unused = [p.name for p in profiles if not any(f == FromProfile(p) for f in found.values())]
    if unused:
        raise InputError(
            f"profile {unused[0]} has the collectives of none of these runs: it is of another "
            "model or layout",
            key="--profile",
        )
    return found


def _check_names(runs: Sequence[MeasuredRun]) -> None:
    """Refuse runs of one name: points, seeds and what was calibrated on say which run by it."""
    first: dict[str, MeasuredRun] = {}
    for run in runs:
        other = first.setdefault(run.name, run)
        if other is not run:
            raise InputError(
                f"has the name of another run, {other.folder.path}: rename one of the folders",
                file=run.folder.path,
            )


def _collectives(profile: MeasuredProfile) -> tuple[tuple[str, int], ...]:
    return tuple((s.operation, s.size_bytes) for s in profile.steps if isinstance(s, Issue))


def _is_source(run: MeasuredRun, profiles: Iterable[MeasuredProfile]) -> bool:
    job = run.result.job or run.name
    return any(job in profile.source for profile in profiles)


def _cases(
    quiet: Sequence[MeasuredRun],
    names: Mapping[Model, str],
    predictors: Mapping[Model, Predictor],
    seen: frozenset[str],
    left_out: dict[str, str],
) -> list[Case]:
    groups: dict[tuple[Setting, bool], list[MeasuredRun]] = {}
    for run in quiet:
        if not can_predict(run.setting.scheme):
            left_out[run.name] = f"the simulator has no scheme {run.setting.scheme}"
        elif run.setting.model not in predictors:
            left_out[run.name] = "no profile is of its model"
        elif ITERATION not in run.samples:
            left_out[run.name] = "too few iterations: none came after the schedule was made"
        else:
            groups.setdefault((run.setting, run.name in seen), []).append(run)
    cases = []
    for (setting, fitted), found in sorted(groups.items(), key=lambda item: _place(item[0][0])):
        try:
            expected = predict(predictors[setting.model], setting)
        except ValueError as error:
            raise InputError(str(error), file=found[0].folder.path) from error
        cases.append(
            Case(
                setting=setting,
                model=names[setting.model],
                runs=tuple(found),
                prediction=expected,
                fitted=fitted,
            )
        )
    return cases


_SCHEMES: Final = (NONE, "blocking", "naive", "unpipelined", "pipelined")
"""In the order of Fig. 16."""


def _place(setting: Setting) -> tuple[Any, ...]:
    return (setting.model, setting.link_bps, _SCHEMES.index(setting.scheme), repr(setting))


def _points(case: Case, left_out: dict[str, str]) -> list[Point]:
    points = []
    for quantity in QUANTITIES:
        samples = [value for run in case.runs for value in run.samples.get(quantity, ())]
        if quantity not in case.prediction.values:
            continue
        if not samples:
            where = f"{case.model}, {case.setting.link}, {case.setting.scheme}"
            left_out[f"{quantity} of {where}"] = "it was not measured"
            continue
        points.append(
            point_of_samples(
                quantity,
                case.setting.to_json(case.model),
                S,
                samples,
                case.prediction.values[quantity],
                (run.name for run in case.runs),
            )
        )
    return points
