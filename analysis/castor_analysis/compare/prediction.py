"""What the simulator says of a setting, from a profile that was measured in another one.

A prediction knows the setting and the profile, and nothing that was measured in the setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from castor_analysis.compare.measured_run import COMPLETE, IDLE, ITERATION, NETWORK
from castor_analysis.compare.settings import Setting
from castor_policy.interleaving import NONE
from castor_policy.job_options import CPU
from castor_sim.iteration.case import load_iteration, measured_case
from castor_sim.iteration.measured import MeasuredHop, MeasuredProfile
from castor_sim.iteration.run import IterationCase, scheme_names, simulate_iteration
from castor_sim.iteration.timeline import Interval
from castor_sim.iteration_config import IterationConfig

SERIAL: Final = "serial_s"
"""How long an iteration takes in which nothing overlaps, as the first one after a start."""
_NS_PER_S: Final = 1e9
_ROOM_BYTES: Final = 1 << 50
"""CPU memory stands in for the GPU's: no scheme runs out of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What is expected of an iteration in a setting.

    Attributes:
        values: by quantity, as `measured_run.QUANTITIES` names them, and `SERIAL`.
        intervals: what runs when, in the first simulated iteration.
    """

    values: Mapping[str, float]
    intervals: tuple[Interval, ...]


class Predictor(Protocol):
    """Something that knows an iteration well enough to simulate it in a setting."""

    def case(self, setting: Setting) -> IterationCase:
        """Return the iteration to simulate.

        Raises:
            ValueError: it cannot be simulated in this setting.
        """
        ...


@dataclass(frozen=True, slots=True)
class FromProfile:
    """Predicts from a measured profile, scaled to the setting's bandwidth.

    Attributes:
        profile: measured at one bandwidth, without checkpoints.
        seed: of the jitter.
    """

    profile: MeasuredProfile
    seed: int = 1

    def case(self, setting: Setting) -> IterationCase:
        """Return the iteration to simulate.

        Raises:
            ValueError: the profile is of other machines, or does not say at which bandwidth it was
                measured.
        """
        profile = self.profile
        measured = (profile.machines, profile.gpus)
        asked = (setting.nodes, setting.ranks_per_node)
        if measured != asked:
            raise ValueError(
                f"profile {profile.name} was measured on {measured[0]} machines of {measured[1]} "
                f"ranks, and the run has {asked[0]} of {asked[1]}: calibrate a run of that layout"
            )
        if setting.link_bps and setting.link_bps != profile.link:
            profile = profile.at_link(setting.link_bps)
        if setting.send == CPU:  # what arrives lies in CPU memory
            profile = profile.model_copy(update={"copy_to_cpu": None})
        elif setting.paced_copy_bps:
            # The stand-in's rate is a setting, as a link's bandwidth is.
            alpha = profile.copy_to_cpu.alpha if profile.copy_to_cpu else 0
            hop = MeasuredHop.model_construct(alpha=alpha, bandwidth=setting.paced_copy_bps)
            profile = profile.model_copy(update={"copy_to_cpu": hop})
        config = IterationConfig(
            buffer=setting.buffer_bytes,
            sub_buffers=setting.sub_buffers,
            mu=setting.mu,
            # A number is in seconds wherever a configuration is read.
            shortest_span=setting.shortest_span_s,  # type: ignore[arg-type]
            free_gpu_memory=_ROOM_BYTES,
        )
        return measured_case(profile, config, replicas=setting.replicas, seed=self.seed)


@dataclass(frozen=True, slots=True)
class FromExperiment:
    """Predicts from an experiment's model and cluster: nothing is calibrated on any run.

    Attributes:
        experiment: path or shipped name of its TOML.
    """

    experiment: str

    def case(self, setting: Setting) -> IterationCase:
        """Return the experiment's iteration with the run's scheme settings.

        Raises:
            InputError: the experiment cannot be loaded.
        """
        overrides = (
            f"iteration.buffer={setting.buffer_bytes}",
            f"iteration.sub_buffers={setting.sub_buffers}",
            f"iteration.mu={setting.mu!r}",
            f"iteration.shortest_span={setting.shortest_span_s!r}s",
            f"replicas={setting.replicas}",
            f"machines={setting.nodes}",
        )
        return load_iteration(self.experiment, overrides).case


def can_predict(scheme: str) -> bool:
    """Whether the simulator has a scheme; "eager" sends whenever it can, which no model is of."""
    return scheme in scheme_names()


def predict(predictor: Predictor, setting: Setting) -> Prediction:
    """Return what is expected of an iteration in a setting.

    Raises:
        ValueError: the simulator has no such scheme, or the predictor refuses the setting.
    """
    if not can_predict(setting.scheme):
        raise ValueError(
            f"the simulator has no scheme {setting.scheme}; it has {', '.join(scheme_names())}"
        )
    case = predictor.case(setting)
    report = simulate_iteration(case, [setting.scheme])
    result = report.results[setting.scheme]
    values = {
        # The mean: a run of many iterations takes so long for each.
        ITERATION: result.iteration_ns / _NS_PER_S,
        IDLE: result.idle_ns / _NS_PER_S,
        SERIAL: sum(task.duration_ns for task in case.tasks if task.machine == 0) / _NS_PER_S,
    }
    if setting.scheme != NONE:
        values[NETWORK] = result.checkpoint_ns / _NS_PER_S
        values[COMPLETE] = result.complete_ns / _NS_PER_S
    return Prediction(values=values, intervals=result.intervals)
