"""Whether the simulator puts the schemes in the order in which they were measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

from castor_analysis.compare.measured_run import ITERATION
from castor_analysis.compare.points import Point, SettingValue
from castor_analysis.compare.settings import NONE, TRAFFIC

TIE: Final = 0.01
"""Two schemes are told apart where one takes longer than the other by more than this share."""

_SCHEME: Final = "scheme"


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeOrder:
    """The schemes of one setting, fastest first.

    Attributes:
        setting: without the scheme.
        measured, simulated: their names.
        wrong: pairs that one side puts clearly (by more than `TIE`) in an order that the other
            side does not have.
    """

    setting: Mapping[str, SettingValue]
    measured: tuple[str, ...]
    simulated: tuple[str, ...]
    wrong: tuple[tuple[str, str], ...]

    @property
    def right(self) -> bool:
        """Whether no pair is wrong."""
        return not self.wrong

    def to_json(self) -> dict[str, Any]:
        """Return it as compare.json holds it."""
        return {
            "setting": dict(self.setting),
            "measured": list(self.measured),
            "simulated": list(self.simulated),
            "wrong_pairs": [list(pair) for pair in self.wrong],
            "right": self.right,
        }


def scheme_orders(points: Iterable[Point]) -> list[SchemeOrder]:
    """Return the order of the schemes in each setting that was measured under two or more.

    Args:
        points: of which those of the iteration's time count; also of calibrating runs, since a
            scheme's place among others is seen only with the baseline beside it.
    """
    baselines: dict[frozenset[tuple[str, SettingValue]], list[Point]] = {}
    by_setting: dict[frozenset[tuple[str, SettingValue]], list[Point]] = {}
    for point in points:
        if point.quantity == ITERATION:
            rest = frozenset((k, v) for k, v in point.setting.items() if k != _SCHEME)
            found = baselines if point.setting[_SCHEME] == NONE else by_setting
            found.setdefault(rest, []).append(point)
    orders = []
    for setting, found_points in by_setting.items():
        # Without checkpoints there is no buffer: one baseline stands beside all that have one.
        alike = frozenset((k, v) for k, v in setting if k not in TRAFFIC)
        beside = [*baselines.get(alike, ()), *found_points]
        if len(beside) > 1:
            orders.append(_order({**found_points[0].setting}, beside))
    return orders


def _order(setting: Mapping[str, SettingValue], points: Sequence[Point]) -> SchemeOrder:
    measured = {str(point.setting[_SCHEME]): point.measured for point in points}
    simulated = {str(point.setting[_SCHEME]): point.simulated for point in points}
    wrong = tuple(
        (one, other)
        for one, other in combinations(sorted(measured), 2)
        if _contradict(measured[one], measured[other], simulated[one], simulated[other])
    )
    return SchemeOrder(
        setting={key: value for key, value in setting.items() if key != _SCHEME},
        measured=tuple(sorted(measured, key=lambda name: (measured[name], name))),
        simulated=tuple(sorted(simulated, key=lambda name: (simulated[name], name))),
        wrong=wrong,
    )


def _contradict(
    measured_s: float, other_measured_s: float, simulated_s: float, other_simulated_s: float
) -> bool:
    measured = _compared(measured_s, other_measured_s)
    simulated = _compared(simulated_s, other_simulated_s)
    if measured == simulated:
        return False
    if 0 not in (measured, simulated):
        return True
    # One side sees a tie: it may not lean the other way.
    clear = measured or simulated
    leans = other_simulated_s - simulated_s if measured else other_measured_s - measured_s
    return clear * leans < 0


def _compared(one_s: float, other_s: float) -> int:
    """Return 1 where the first is clearly faster, -1 where the second is, 0 for a tie."""
    if abs(one_s - other_s) <= TIE * min(one_s, other_s):
        return 0
    return 1 if one_s < other_s else -1
