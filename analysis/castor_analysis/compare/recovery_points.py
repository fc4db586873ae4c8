"""Measured recoveries beside predicted ones, as points.

Which phases share a point is decided by what is predicted alone, and every phase is in exactly one:

- What follows from neither link nor model is pooled over all settings with outages of that kind:
  a detection by lease, which each failure draws anew, as `recovery_detection_s`; what is left
  (replacement, planning, the detection of a process, reading one's own memory) as
  `recovery_planning_etc_s`: these are processes that notice and talk, and a relative error of
  one of 20 ms would say nothing.
- Where even that sum is predicted to be shorter than `SHORT_S`, its phases count in the point of
  the shortest other phase of each setting.
- Every other phase has a point for each setting, and so has the whole, `recovery_total_s`.

A point of several phases names them in its setting, as "phases".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from castor_analysis.compare.outages import REQUESTED, LeftOut, OutageKind, OutageSample
from castor_analysis.compare.points import Point, S, SettingValue, point_of_samples
from castor_analysis.compare.recovery_model import OutageSetting, RecoveryModel
from castor_configs.readable import format_seconds
from castor_records.phases import MEASURED

SHORT_S: Final = 0.05

_PLANNING: Final = "planning_etc"


@dataclass(frozen=True, slots=True)
class MeasuredOutages:
    """What was measured in one setting.

    Attributes:
        setting: what the prediction follows from; its iteration time is a predicted one.
        shown: what a point's setting says of it: link, model, and so on.
        outages: of all runs in it.
    """

    setting: OutageSetting
    shown: Mapping[str, SettingValue]
    outages: Sequence[OutageSample]


def recovery_points(
    model: RecoveryModel, measured: Sequence[MeasuredOutages]
) -> tuple[list[Point], list[LeftOut]]:
    """Return the points of all outages that the model knows, and those that it does not.

    Args:
        model: fitted on none of the runs.
        measured: one for each setting.

    Raises:
        ValueError: the model was fitted on one of the runs.
    """
    points: list[Point] = []
    left_out: list[LeftOut] = []
    pooled: dict[tuple[OutageKind, float], list[OutageSample]] = {}
    for one in measured:
        for kind, alike in _by_kind(one.outages):
            seen = sorted({o.run for o in alike} & set(model.runs))
            if seen:
                raise ValueError(f"{seen[0]} calibrated the model: it cannot check it")
            if kind not in model.kinds:
                why = f"no calibrating run had an outage of {kind}"
                left_out += [LeftOut(o.run, o.generation, why) for o in alike]
                continue
            pooled.setdefault((kind, one.setting.lease_s), []).extend(alike)
            points += _of_setting(model, one, kind, alike)
    for (kind, lease_s), alike in pooled.items():
        setting = next(one.setting for one in measured if one.setting.lease_s == lease_s)
        points += _of_all_settings(model, setting, kind, alike)
    return points, left_out


def grouped_phases(
    model: RecoveryModel, kind: OutageKind, setting: OutageSetting
) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Return the phases of each point by its name: those of all settings, and those of each one.

    Args:
        model: knows the kind.
        kind: of the outages.
        setting: of which it is asked.
    """
    predicted = model.predict(kind, setting)
    constant = ["interrupted", "replacement", "planning"]
    everywhere: dict[str, tuple[str, ...]] = {}
    if model.kinds[kind].by_lease:
        everywhere["detection"] = ("detection",)
    else:
        constant.append("detection")
    if kind.source == "own_memory":
        constant.append("retrieval")
    constant = [phase for phase in MEASURED if phase in constant]
    rest = [phase for phase in MEASURED if phase not in (*constant, *everywhere)]
    here: dict[str, tuple[str, ...]] = {phase: (phase,) for phase in rest}
    if sum(predicted[phase] for phase in constant) >= SHORT_S:
        everywhere[_PLANNING] = tuple(constant)
    else:
        shortest = min(rest, key=lambda phase: predicted[phase])
        here[shortest] = (shortest, *constant)
    return everywhere, here


def _of_all_settings(
    model: RecoveryModel, setting: OutageSetting, kind: OutageKind, alike: Sequence[OutageSample]
) -> list[Point]:
    everywhere, _ = grouped_phases(model, kind, setting)
    predicted = model.predict(kind, setting)
    shown = {**_kind_shown(kind), "lease": format_seconds(setting.lease_s)}
    return [
        _point(f"recovery_{name}_s", shown, phases, alike, predicted)
        for name, phases in everywhere.items()
    ]


def _of_setting(
    model: RecoveryModel, one: MeasuredOutages, kind: OutageKind, alike: Sequence[OutageSample]
) -> list[Point]:
    _, here = grouped_phases(model, kind, one.setting)
    predicted = model.predict(kind, one.setting)
    shown = {**one.shown, **_kind_shown(kind)}
    groups = {**here, "total": ("total",)}
    return [
        _point(f"recovery_{name}_s", shown, phases, alike, predicted)
        for name, phases in groups.items()
    ]


def _point(
    quantity: str,
    shown: Mapping[str, SettingValue],
    phases: Sequence[str],
    alike: Sequence[OutageSample],
    predicted: Mapping[str, float],
) -> Point:
    samples = [sum(outage.seconds[phase] for phase in phases) for outage in alike]
    runs = sorted({outage.run for outage in alike})
    if len(phases) > 1:
        shown = {**shown, "phases": "+".join(phases)}
    simulated_s = sum(predicted[phase] for phase in phases)
    return point_of_samples(quantity, shown, S, samples, simulated_s, runs)


def _kind_shown(kind: OutageKind) -> dict[str, SettingValue]:
    shown: dict[str, SettingValue] = {"failure": kind.failure, "from": kind.source}
    if kind.replacement == REQUESTED:
        shown["replaced_by"] = "a machine asked for"
    return shown


def _by_kind(outages: Sequence[OutageSample]) -> list[tuple[OutageKind, list[OutageSample]]]:
    kinds: dict[OutageKind, list[OutageSample]] = {}
    for outage in outages:
        kinds.setdefault(outage.kind, []).append(outage)
    return sorted(kinds.items(), key=lambda item: str(item[0]))
