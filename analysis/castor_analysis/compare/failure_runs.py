"""Runs with failures in a comparison: those of one setting calibrate, the others are predicted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from castor_analysis.compare.ettr_model import ettr_points, predict_ettr, read_replay
from castor_analysis.compare.measured_run import COMPLETE, ITERATION, MeasuredRun
from castor_analysis.compare.outages import LeftOut, OutageSample, outages
from castor_analysis.compare.points import Point, SettingValue
from castor_analysis.compare.prediction import SERIAL
from castor_analysis.compare.recovery_model import OutageSetting, RecoveryModel, calibrate
from castor_analysis.compare.recovery_points import MeasuredOutages, recovery_points
from castor_analysis.compare.settings import Setting, job_spec_of

Names = Mapping[tuple[str, tuple[tuple[str, str], ...]], str]
"""A short name for each `Setting.model`, as `settings.model_names` makes them."""

Predict = Callable[[Setting], Mapping[str, float]]
"""An iteration's predicted quantities, named as `Prediction.values`."""


@dataclass(frozen=True, slots=True)
class FailureModel:
    """Recoveries fitted on runs of one setting, and what predicts an iteration.

    Attributes:
        recovery: the fitted model.
        predict: of an iteration in another setting.
        left_out: outages of the calibrating runs that were not fitted, and why.
    """

    recovery: RecoveryModel
    predict: Predict
    left_out: tuple[LeftOut, ...]

    @classmethod
    def fitted(cls, runs: Sequence[MeasuredRun], predict: Predict) -> FailureModel:
        """Fit the recoveries of runs of one setting.

        Raises:
            ValueError: nothing failed in them, or they are of several settings.
        """
        if len({run.setting for run in runs}) != 1:
            raise ValueError("recoveries are fitted on the runs of one setting; leave out others")
        found: list[OutageSample] = []
        left_out: list[LeftOut] = []
        for run in runs:
            alike, unlike = _outages(run)
            found += alike
            left_out += unlike
        setting = _setting(runs[0], predict(runs[0].setting))
        return cls(calibrate(found, setting), predict, tuple(left_out))

    def recovery_points(
        self, runs: Sequence[MeasuredRun], names: Names
    ) -> tuple[list[Point], list[LeftOut]]:
        """Return the points of other runs' recoveries, and the outages that are in none.

        Args:
            runs: of any settings; those of one are repetitions.
            names: of each setting's model.
        """
        settings: dict[Setting, list[MeasuredRun]] = {}
        for run in runs:
            settings.setdefault(run.setting, []).append(run)
        measured: list[MeasuredOutages] = []
        left_out: list[LeftOut] = []
        for setting, alike in settings.items():
            found: list[OutageSample] = []
            for run in alike:
                of_run, unlike = _outages(run)
                found += of_run
                left_out += unlike
            of_setting = _setting(alike[0], self.predict(setting))
            shown = _shown(setting, names)
            measured.append(MeasuredOutages(of_setting, shown, found))
        points, unknown = recovery_points(self.recovery, measured)
        return points, [*left_out, *unknown]

    def replay_points(self, run: MeasuredRun, names: Names) -> list[Point]:
        """Return the points of a run whose failures came one after the other.

        Raises:
            ValueError: it has failures that are not modelled or were not fitted, or it calibrated.
        """
        if run.name in self.recovery.runs:
            raise ValueError(f"{run.name} calibrated the model: it cannot check it")
        predicted = self.predict(run.setting)
        replay = read_replay(run.entries)
        prediction = predict_ettr(
            replay,
            self.recovery,
            _setting(run, predicted),
            replicas=job_spec_of(run.result).replicas,
            checkpoint_s=predicted[COMPLETE],
            standbys=standbys_of(run.result.command),
        )
        return ettr_points(replay, prediction, _shown(run.setting, names), run.name)


def standbys_of(command: Sequence[str]) -> int:
    """Return the machines that stood by when a run began, as its command says."""
    for index, word in enumerate(command):
        name, _, value = word.partition("=")
        if name == "--standby":
            return int(value or command[index + 1])
    return 0


def _outages(run: MeasuredRun) -> tuple[list[OutageSample], list[LeftOut]]:
    return outages(run.entries, run=run.name, standbys=standbys_of(run.result.command))


def _setting(run: MeasuredRun, predicted: Mapping[str, float]) -> OutageSetting:
    return OutageSetting.of_run(
        run.result,
        checkpoint_bytes=run.checkpoint_bytes,
        iteration_s=predicted[ITERATION],
        serial_s=predicted[SERIAL],
    )


def _shown(setting: Setting, names: Names) -> dict[str, SettingValue]:
    return {"link": setting.link, "model": names[setting.model], "scheme": setting.scheme}
