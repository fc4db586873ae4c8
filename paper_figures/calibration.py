"""Fit the iteration simulator to some of the paper's bars, and check it on the others.

A cluster has five figures (`castor_configs.cluster.Calibration`, but for the update's own time,
which follows from the memory bandwidth). One set holds for every model of the cluster:

- collective_efficiency: from the time in which the network is busy, iteration less idle time;
- compute_efficiency: from the iteration time, given that;
- checkpoint_efficiency: from the checkpoint time;
- gradient_check: from the largest idle span that sec. 7.4 names (p3dn);
- copy_efficiency: from Fig. 16's bar without pipeline (p3dn).

The shipped clusters hold what the GPT-2 bars give, those whose shape agrees with their name; the
rest is held out. `leave_one_out` fits to all models of a cluster but one and predicts that.

    castor figures --calibration
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Final

from castor_configs.cluster import Calibration, Cluster, load_cluster
from castor_configs.model import Model, load_model
from castor_sim.iteration.case import case_of_model
from castor_sim.iteration.run import IterationReport, simulate_iteration
from castor_sim.iteration.tasks import Lane
from castor_sim.iteration_config import IterationConfig
from paper_figures.published import published_values

IDLE = "Idle without checkpoints"
ITERATION = "Without checkpoints"
CHECKPOINT = "Checkpoint"

MODELS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "p3dn": ("gpt2-10b", "gpt2-20b", "gpt2-40b", "roberta-40b", "bert-40b"),
        "p4d": ("gpt2-100b", "roberta-100b", "bert-100b"),
    }
)
"""The models of Fig. 13, and of Fig. 7 and 8."""

FITTED_ON: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"p3dn": ("gpt2-20b", "gpt2-40b"), "p4d": ("gpt2-100b",)}
)
"""What the shipped clusters were fitted on. GPT-2 10B is held out: Table 2's shape has 3.75 B."""

_FIGURES: Final = MappingProxyType({"p3dn": ("fig13", "fig13"), "p4d": ("fig07", "fig08")})
_STEPS: Final = 60
_TOLERANCE: Final = 1e-5


@dataclass(frozen=True, slots=True)
class Bars:
    """What the paper shows of one model.

    Attributes:
        model: its configuration.
        iteration_s, idle_s, checkpoint_s: without checkpoints; the checkpoint's traffic.
    """

    model: Model
    iteration_s: float
    idle_s: float
    checkpoint_s: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """One of the paper's bars and what the simulator says.

    Attributes:
        cluster, model, quantity: which bar.
        paper, ours: in seconds.
        held_out: whether the simulator was fitted without it.
    """

    cluster: str
    model: str
    quantity: str
    paper: float
    ours: float
    held_out: bool

    @property
    def error(self) -> float:
        """Ours over the paper's, less 1."""
        return self.ours / self.paper - 1.0


@cache
def bars_of(cluster: str, name: str) -> Bars:
    """Return the paper's bars of a model.

    Raises:
        KeyError: the paper has none.
    """
    model = load_model(name)
    iteration, idle = (published_values(figure) for figure in _FIGURES[cluster])
    return Bars(
        model,
        iteration[ITERATION, model.name].value,
        idle[IDLE, model.name].value,
        idle[CHECKPOINT, model.name].value,
    )


def simulate(cluster: Cluster, model: Model, schemes: Iterable[str]) -> IterationReport:
    """Return the iteration of one of the paper's models on a cluster, two replicas."""
    case = case_of_model(model, cluster, cluster.machines, IterationConfig())
    return simulate_iteration(case, schemes)


def fit(cluster: Cluster, bars: Sequence[Bars]) -> Cluster:
    """Return the cluster with its efficiencies fitted to the bars, the rest of it as it is.

    Each is the one whose mean error over the bars is nothing, errors being ratios.
    """
    gpus = cluster.gpus
    fitted = _with(cluster, collective_efficiency=1.0)
    at_full = [_busy_s(fitted, bar.model) for bar in bars]
    busy = [bar.iteration_s - bar.idle_s for bar in bars]
    fitted = _with(fitted, collective_efficiency=_mean_ratio(at_full, busy))
    shard_s = [
        8 * bar.model.checkpoint_bytes / gpus * cluster.gpus_per_machine / cluster.network_bandwidth
        for bar in bars
    ]
    checkpoint = _mean_ratio(shard_s, [bar.checkpoint_s for bar in bars])
    fitted = _with(fitted, checkpoint_efficiency=checkpoint)

    def excess(efficiency: float) -> float:
        trial = _with(fitted, compute_efficiency=efficiency)
        times = [_iteration_s(trial, bar.model) for bar in bars]
        return math.log(_mean_ratio(times, [bar.iteration_s for bar in bars]))

    return _with(fitted, compute_efficiency=_root(excess, 0.05, 1.0))


def fit_copy(cluster: Cluster) -> Cluster:
    """Return the cluster with the copies to CPU memory fitted to Fig. 16's unpipelined bar."""
    published = published_values("fig16")
    paper = published["Iteration", "unpipelined"].value / published["Iteration", "none"].value - 1.0
    model = load_model("gpt2-40b")

    def excess(efficiency: float) -> float:
        trial = _with(cluster, copy_efficiency=efficiency)
        return simulate(trial, model, ("unpipelined",)).overhead("unpipelined") - paper

    return _with(cluster, copy_efficiency=_root(excess, 0.1, 1.0))


def gradient_check_s() -> float:
    """Return the time for 1e9 parameters of a shard that the text's largest idle span gives."""
    model = load_model("gpt2-40b")
    largest_s = published_values("fig16")["Largest idle span", "none"].value
    return largest_s / (model.parameters / load_cluster("p3dn").gpus / 1e9)


@cache
def fitted_cluster(name: str) -> Cluster:
    """Return a cluster of the paper with its calibration fitted anew, unrounded."""
    cluster = load_cluster(name)
    if name == "p3dn":
        cluster = _with(cluster, gradient_check=gradient_check_s())
    cluster = fit(cluster, [bars_of(name, model) for model in FITTED_ON[name]])
    return fit_copy(cluster) if name == "p3dn" else cluster


def predictions(
    cluster: Cluster, models: Iterable[str], *, held_out: Callable[[str], bool]
) -> Iterator[Prediction]:
    """Yield iteration, idle and checkpoint time of models, the paper's beside ours."""
    for name in models:
        bars = bars_of(cluster.name, name)
        report = simulate(cluster, bars.model, ("pipelined",))
        for quantity, paper, ours_ns in (
            ("iteration", bars.iteration_s, report.baseline.iteration_ns),
            ("idle", bars.idle_s, report.baseline.idle_ns),
            ("checkpoint", bars.checkpoint_s, report.results["pipelined"].checkpoint_ns),
        ):
            yield Prediction(
                cluster.name, bars.model.name, quantity, paper, ours_ns / 1e9, held_out(name)
            )


def checks(name: str) -> tuple[Prediction, ...]:
    """Return all bars of a shipped cluster, with those that it was not fitted on marked."""
    fitted_on = FITTED_ON[name]
    return tuple(
        predictions(load_cluster(name), MODELS[name], held_out=lambda model: model not in fitted_on)
    )


def leave_one_out(name: str) -> tuple[Prediction, ...]:
    """Return for each model of a cluster what a fit to all the others predicts."""
    cluster = fitted_cluster(name)
    found: list[Prediction] = []
    for model in MODELS[name]:
        others = [bars_of(name, other) for other in MODELS[name] if other != model]
        found += predictions(fit(cluster, others), (model,), held_out=lambda _: True)
    return tuple(found)


def _with(cluster: Cluster, **figures: float) -> Cluster:
    calibration: Calibration = cluster.calibration.model_copy(update=figures)
    return cluster.model_copy(update={"calibration": calibration})


def _iteration_s(cluster: Cluster, model: Model) -> float:
    return simulate(cluster, model, ()).baseline.iteration_ns / 1e9


def _busy_s(cluster: Cluster, model: Model) -> float:
    case = case_of_model(model, cluster, cluster.machines, IterationConfig())
    return sum(task.duration_ns for task in case.tasks if task.lane is Lane.NETWORK) / 1e9


def _mean_ratio(values: Sequence[float], over: Sequence[float]) -> float:
    logs = [math.log(value / other) for value, other in zip(values, over, strict=True)]
    return math.exp(math.fsum(logs) / len(logs))


def _root(excess: Callable[[float], float], low: float, high: float) -> float:
    """Return the efficiency at which `excess` is 0; it falls as efficiency grows.

    Regula falsi (Illinois) over 1/efficiency, in which times are pieces of straight lines.

    Raises:
        ValueError: it is not 0 between `low` and `high`.
    """
    slow, fast = 1.0 / low, 1.0 / high
    above, below = excess(low), excess(high)
    if not below <= 0.0 <= above:
        raise ValueError(f"no efficiency from {low} to {high} meets the paper's bars")
    side = 0
    for _ in range(_STEPS):
        middle = (slow * below - fast * above) / (below - above)
        value = excess(1.0 / middle)
        if abs(value) < _TOLERANCE:
            return 1.0 / middle
        if value > 0.0:
            slow, above = middle, value
            below = below / 2.0 if side > 0 else below
            side = 1
        else:
            fast, below = middle, value
            above = above / 2.0 if side < 0 else above
            side = -1
    raise ValueError(f"no efficiency found in {_STEPS} steps")
