"""Whether the simulator puts the schemes in the order in which they were measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

from castor_analysis.compare.measured_run import ITERATION
from castor_analysis.compare.points import Point, SettingValue
from castor_analysis.compare.settings import TRAFFIC
from castor_policy.interleaving import NONE

TIE: Final = 0.01
"""Two schemes are a tie where neither side has one take longer by more than this share."""

CLEAR: Final = 0.05
"""A difference of more than this share on one side may not be none at all on the other."""

_SCHEME: Final = "scheme"


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeOrder:
    """The schemes of one setting, fastest first.

    Attributes:
        setting: without the scheme.
        measured, simulated: their names.
        wrong: pairs that the sides put in opposite orders and at least one of them holds for no
            tie, and pairs of a `CLEAR` difference on one side and none on the other.
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
    measured = (other_measured_s - measured_s) / min(measured_s, other_measured_s)
    simulated = (other_simulated_s - simulated_s) / min(simulated_s, other_simulated_s)
    if measured * simulated < 0:
        return max(abs(measured), abs(simulated)) > TIE
    # Where one side sees no difference at all, the other may see a small one.
    return measured * simulated == 0 and max(abs(measured), abs(simulated)) > CLEAR
