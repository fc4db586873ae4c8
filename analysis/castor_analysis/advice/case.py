"""The case that `castor advise` looks at: the job, what fails how often, and how it is replaced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from castor_analysis.advice.failing import DAY_S, Failing, generated, of_trace
from castor_configs.cluster import Cluster
from castor_configs.document import Document, apply_overrides
from castor_configs.errors import InputError
from castor_configs.faults import joined, validation_faults
from castor_sim.experiment import Experiment
from castor_sim.job import NS_PER_S
from castor_sim.setup import Setup, resolve
from castor_traces.domains import domain_numbers
from castor_traces.joint import WITHIN_NS
from castor_traces.presets import PRESETS
from castor_traces.trace import Trace

DEFAULT_RATE_PER_S = 0.015 / DAY_S
"""OPT-175B: 1.5 % of the machines fail a day (docs/paper.md, sec. 7)."""

DEFAULT_HARDWARE_SHARE = 0.5
"""No source splits OPT-175B's failures; half of them taking the machine is an assumption."""

DEFAULT_DOMAIN_RATE_PER_S = 0.0014 / DAY_S
"""A rack or switch goes down whole about every two years: an assumption."""

MOST_RATE_PER_S = 1 / 3600.0
"""A machine that fails once an hour trains nothing; a rate above is a slip, such as a missing
"/day"."""

SETTABLE = ("training", "detection", "replacement")
"""The tables of an experiment that the caller may set; the rest is what advice is about."""

SETTABLE_KEYS = ("machines", "duration", "seed", "gpu_hour_price")

_DRAFT = Path("castor-advise.toml")
_PROBE = {"probe": {"kind": "gemini", "serialise": "0s"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What advice is asked for.

    Attributes:
        cluster, model: names of shipped configurations, or paths.
        trace: a trace to replay, by name or path; None: Poisson failures.
        rate_per_s: failures of one machine; None: the published rate of a cluster that has one,
            else OPT-175B's. Not together with a trace.
        hardware_share: the share of the failures that take the machine; None: as published, else
            a half. Not together with a trace.
        domain_rate_per_s: how often one rack goes down whole, if the cluster says what a rack is.
        memory_share: the share of a machine's CPU memory that checkpoints may take.
        memory_bytes: the same in bytes; goes before `memory_share`.
        settings: `key=value` of the experiment: `SETTABLE` and `SETTABLE_KEYS`.
        seeds: replications of each simulation.
        within_ns: failures of a trace that begin within it are joint.
    """

    cluster: str
    model: str
    trace: str | None = None
    rate_per_s: float | None = None
    hardware_share: float | None = None
    domain_rate_per_s: float | None = None
    memory_share: float = 0.75
    memory_bytes: int | None = None
    settings: tuple[str, ...] = ()
    seeds: int = 20
    within_ns: int = WITHIN_NS


@dataclass(frozen=True, slots=True)
class Domains:
    """Machines that fail as one.

    Attributes:
        kind: "rack", "switch" or what else they share.
        size: machines of the largest one.
        numbers: of a trace: the domain of each machine of the job, as the first replication has
            them; empty where the cluster says the size, and consecutive machines share one.
    """

    kind: str
    size: int
    numbers: tuple[int, ...] = ()

    @classmethod
    def of_trace(cls, trace: Trace, machines: int) -> Domains | None:
        """Return what a trace's rows name; None if they name nothing, or only single machines."""
        numbers = domain_numbers(trace, machines)
        size = max(Counter(numbers).values()) if numbers else 1
        return cls("failure domain", size, tuple(numbers or ())) if size > 1 else None

    def of_machines(self, machines: int) -> list[int]:
        """Return the domain of each machine."""
        return list(self.numbers) or [machine // self.size for machine in range(machines)]


@dataclass(frozen=True, slots=True)
class Case:
    """A request, resolved.

    Attributes:
        request: as asked.
        setup: of the job with a probing strategy; its `job` is what profiles are made from.
        failing: what fails.
        domains: what fails together, if the cluster says.
        restore_s: mean time until a lost machine is replaced by another, detection excluded.
        budget_bytes: CPU memory that checkpoints may take on a machine.
    """

    request: Request
    setup: Setup
    failing: Failing
    domains: Domains | None
    restore_s: float
    budget_bytes: int

    @property
    def detection_s(self) -> float:
        """Typical time until a failure is known."""
        return self.setup.job.detection_ns / NS_PER_S

    @property
    def fleet(self) -> bool:
        """Whether lost machines are repaired and return, instead of being replaced by a cloud."""
        return self.setup.operations.fleet > 0

    def experiment(
        self, strategies: Mapping[str, Mapping[str, object]], *, standbys: int
    ) -> Experiment:
        """Return the experiment of this case with these strategies and standbys."""
        return _experiment(self.request, self.domains, strategies, standbys=standbys)

    def resolve(self, strategies: Mapping[str, Mapping[str, object]], *, standbys: int) -> Setup:
        """Resolve `experiment`, ready to run."""
        return resolve(self.experiment(strategies, standbys=standbys), _DRAFT)


def make_case(request: Request, cluster: Cluster) -> Case:
    """Resolve a request.

    Args:
        request: what is asked.
        cluster: the one that it names.

    Raises:
        InputError: the model, the trace or a setting is missing or wrong, or options exclude
            each other.
    """
    _check(request)
    rate_source = ""
    if request.trace is None:
        rate, share, rate_source = rate_of(request, cluster.name)
        request = replace(request, rate_per_s=rate, hardware_share=share)
    domains = _domains(cluster)
    draft = _experiment(request, domains, _PROBE, standbys=0)
    try:
        setup = resolve(draft, _DRAFT)
    except InputError as error:
        if error.key == "training.iteration":
            raise InputError(
                f"nothing says how long an iteration of {request.model} takes on "
                f'{request.cluster}: give it with --set training.iteration="60s"',
                key="training.iteration",
            ) from error
        if error.file == str(_DRAFT):
            # No file of the caller's: the experiment is a value.
            raise InputError(error.message, key=error.key) from error
        raise
    replayed = setup.replayed(setup.experiment.seed)
    if replayed is not None:
        # What a trace says of its own machines goes before what the cluster says of its racks.
        domains = Domains.of_trace(replayed, setup.job.machines) or domains
    if setup.trace is not None and replayed is not None:
        named = domains is not None and bool(domains.numbers)
        failing = of_trace(setup, setup.trace, replayed, request.within_ns, named=named)
    else:
        failing = generated(
            setup,
            request.rate_per_s or 0.0,
            request.hardware_share or 0.0,
            domains.size if domains is not None else 1,
            rate_source,
        )
    budget = request.memory_bytes
    if budget is None:
        budget = int(cluster.cpu_memory * request.memory_share)
    return Case(request, setup, failing, domains, _restore_s(setup), budget)


def _check(request: Request) -> None:
    if request.trace is not None and (
        request.rate_per_s is not None or request.hardware_share is not None
    ):
        raise InputError(
            "a trace has its own failure rate and hardware share; leave --rate and "
            "--hardware-share out, or --trace",
            key="--trace",
        )
    for option, rate in (
        ("--rate", request.rate_per_s),
        ("--rack-rate", request.domain_rate_per_s),
    ):
        if rate is not None and rate > MOST_RATE_PER_S:
            raise InputError(
                f"{rate * 3600:.4g} failures an hour of each are too many to train anything; "
                'write another period, as in "1.5%/day"',
                key=option,
            )
    for setting in request.settings:
        key = setting.partition("=")[0].strip()
        table = key.partition(".")[0]
        if key == "replacement.standbys":
            raise InputError("the number of standbys is part of the advice", key="--set")
        if table not in SETTABLE and key not in SETTABLE_KEYS:
            raise InputError(
                f"{key} cannot be set here; keys of {', '.join(SETTABLE)} can, and "
                f"{', '.join(SETTABLE_KEYS)}",
                key="--set",
            )


def _domains(cluster: Cluster) -> Domains | None:
    """Take the largest domain: copies spread over it are spread over those inside it."""
    given = {
        "rack": cluster.domains.machines_per_rack,
        "switch": cluster.domains.machines_per_switch,
        "power feed": cluster.domains.machines_per_power_feed,
    }
    sizes = [(size, -place, kind) for place, (kind, size) in enumerate(given.items()) if size]
    size, _, kind = max(sizes, default=(0, 0, ""))
    return Domains(kind, size) if size > 1 else None


def rate_of(request: Request, cluster_name: str) -> tuple[float, float, str]:
    """Return failures of a machine a second, the share of hardware, and where they are from."""
    rate, share = request.rate_per_s, request.hardware_share
    preset = PRESETS.get(cluster_name)
    source = "as given"
    published_share = DEFAULT_HARDWARE_SHARE
    if preset is not None and preset.marks.causes:
        weights = [(cause.weight, cause.hardware) for cause in preset.marks.causes]
        lost = sum(weight for weight, hardware in weights if hardware)
        published_share = lost / sum(weight for weight, _ in weights)
    if rate is None:
        published = preset.rate_per_s if preset is not None else DEFAULT_RATE_PER_S
        source = f"published for {cluster_name}" if preset else "OPT-175B's, as none is given"
        rate = published
    return rate, published_share if share is None else share, source


def _experiment(
    request: Request,
    domains: Domains | None,
    strategies: Mapping[str, Mapping[str, object]],
    *,
    standbys: int,
) -> Experiment:
    failures: dict[str, object]
    if request.trace is not None:
        trace = request.trace
        if Path(trace).is_file():
            trace = str(Path(trace).resolve())
        failures = {"process": "trace", "trace": trace, "rescale": True}
        failures["within"] = request.within_ns / NS_PER_S
    else:
        failures = {
            "process": "poisson",
            "rate": request.rate_per_s,
            "hardware_share": request.hardware_share,
        }
        if domains is not None:
            domain_rate = request.domain_rate_per_s
            domain_rate = DEFAULT_DOMAIN_RATE_PER_S if domain_rate is None else domain_rate
            failures["domains"] = {"size": domains.size, "rate": domain_rate}
    data: dict[str, object] = {
        "name": f"advice-{Path(request.model).stem}-{Path(request.cluster).stem}",
        "cluster": request.cluster,
        "model": request.model,
        "replicas": 1,  # fits any job; a memory strategy says its own
        "seeds": request.seeds,
        "failures": failures,
        "strategies": {key: dict(table) for key, table in strategies.items()},
    }
    if domains is not None and not domains.numbers:
        data["placement_domains"] = domains.size
    document = Document(data)
    faults = apply_overrides(document, request.settings)
    # Set last: not the caller's to say.
    document.set(("replacement", "standbys"), standbys)
    try:
        experiment = Experiment.model_validate(document.data)
    except ValidationError as error:
        faults += validation_faults(error, document, Experiment, file="castor advise")
    else:
        if not faults:
            return experiment
    raise joined(faults)


def _restore_s(setup: Setup) -> float:
    """Return the mean time until a lost machine is replaced, or repaired in a fleet."""
    replacement = setup.experiment.replacement
    if not setup.operations.fleet:
        low_ns, high_ns = replacement.provision
        return ((low_ns + high_ns) / 2 + replacement.setup) / NS_PER_S
    drawn_s = replacement.repair.mean / NS_PER_S
    if setup.trace is None:
        return drawn_s
    lost = [failure for failure in setup.trace.failures if failure.kind == "hardware"]
    if not lost:
        return drawn_s
    known = sum(f.duration_ns / NS_PER_S for f in lost if f.duration_ns is not None)
    unknown = sum(1 for f in lost if f.duration_ns is None)
    return (known + unknown * drawn_s) / len(lost)
