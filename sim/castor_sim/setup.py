"""From an experiment to what an engine runs: costs, operations, placement, failures."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from castor_configs.cluster import Cluster, load_cluster
from castor_configs.errors import InputError
from castor_configs.find import find_config
from castor_configs.load import load_toml
from castor_configs.model import Model, load_model
from castor_policy.placement import Placement, place
from castor_sim.detection import DetectionConfig
from castor_sim.experiment import Experiment, OwnStrategy, load_strategy, of_strategy
from castor_sim.failure_config import stream
from castor_sim.job import NS_PER_S, Job
from castor_sim.pace import Slowdown
from castor_sim.strategy_costs import MAX_HORIZON_NS, StrategyCosts, check_costs
from castor_sim.strikes import Strikes
from castor_sim.tally import Operations
from castor_sim.troubles import Troubles
from castor_traces.domains import domain_numbers
from castor_traces.edit import rescale, shuffle_machines
from castor_traces.failure_stream import FailureProcess
from castor_traces.library import load_any
from castor_traces.random_draws import Draws, Integers, Words, uniform_ns
from castor_traces.trace import Trace

YEAR_NS = 365 * 86_400 * NS_PER_S


@dataclass(frozen=True, slots=True)
class Setup:
    """All that a run of this experiment needs, resolved and checked once.

    Attributes:
        experiment: as loaded.
        folder: where it was loaded from; names in it are relative to that.
        cluster, model: what it names.
        job: what strategies compute from.
        costs: one for each strategy, by name, in the experiment's order.
        placements: where each strategy's replicas are, by its name.
        operations: how machines are watched and replaced, but for what a strategy has otherwise;
            see `operations_of`.
        detections: how each strategy's failures are found out, by its name.
        trace: the trace to replay, if any, as it was loaded; see `replayed`.
        watched: machines that failures name: the job's, or those of a fleet or a replayed trace.
        process: what generates the failures otherwise; None: nothing fails.
        horizon_ns: the end of a run.
        target_iterations: the iteration to stop at; 0: none.
        price_per_gpu_hour: for the money lost.
    """

    experiment: Experiment
    folder: Path
    cluster: Cluster
    model: Model
    job: Job
    costs: dict[str, StrategyCosts]
    placements: dict[str, Placement]
    operations: Operations
    detections: dict[str, DetectionConfig]
    trace: Trace | None
    watched: int
    process: FailureProcess | None
    horizon_ns: int
    target_iterations: int
    price_per_gpu_hour: float

    def operations_of(self, strategy: str) -> Operations:
        """Return how machines are watched and replaced under a strategy."""
        return self.detections[strategy].watched(self.operations)

    def replayed(self, seed: int) -> Trace | None:
        """Return the trace as replication `seed` meets it; None where failures are generated.

        Thinned or laid over itself anew in each replication: one thinning for all would be one
        sample, and intervals over its replications would not cover another one.
        """
        failures, trace = self.experiment.failures, self.trace
        if trace is not None and failures.rescale:
            trace = rescale(trace, self.watched, seed)
        if trace is not None and failures.shuffle:
            trace = shuffle_machines(trace, seed)
        return trace

    def placement(self, strategy: str, seed: int) -> Placement:
        """Return where a strategy's replicas are in replication `seed`.

        One for all, unless failure domains are read off the trace: they lie elsewhere each time.
        """
        placed, trace = self.placements[strategy], None
        if placed.kind == "domains" and self.experiment.placement_domains is None:
            trace = self.replayed(seed)
        if trace is None:
            return placed
        domains = domain_numbers(trace, placed.machines)
        return place("domains", placed.machines, placed.replica_count, domains=domains)

    def strikes(self, seed: int) -> Iterator[Strikes]:
        """Yield the failures of one replication, with what is drawn for each beforehand.

        Each cause of randomness has a stream of its own, and each failure draws as many words
        whatever its kind, so that all strategies and settings meet the same luck.
        """
        failures = self.experiment.failures
        source = stream(self.process, self.replayed(seed), seed, self.horizon_ns)
        if source is None:
            return
        kept = Draws(seed, "kept")
        which = Draws(seed, "which machine")
        restore = Draws(seed, "replacement")
        for block in source.blocks():
            rows = len(block)
            machine = block.machine
            drawn = which.integers(rows, source.machines).astype(np.int32)
            machine = np.where(machine < 0, drawn, machine).astype(np.int32)
            restore_ns = self._restore_ns(restore.words(rows))
            if self.operations.fleet:
                restore_ns = np.where(block.duration_ns < 0, restore_ns, block.duration_ns)
            # Whoever is away for longer than any run never comes back; sums stay within int64.
            restore_ns = np.minimum(restore_ns, MAX_HORIZON_NS)
            strikes = Strikes(block.time_ns, machine, block.hardware.astype(np.int8), restore_ns)
            if failures.keep < 1:
                strikes = strikes.rows(kept.uniform(rows) < failures.keep)
            yield strikes

    def _restore_ns(self, words: Words) -> Integers:
        """Return for a word each how long a machine is away: in repair, or on its way."""
        replacement = self.experiment.replacement
        if self.operations.fleet:
            return replacement.repair.distribution().durations_ns(words)
        low_ns, high_ns = replacement.provision
        return uniform_ns(words, low_ns, high_ns + 1) + np.int64(replacement.setup)

    @property
    def has_troubles(self) -> bool:
        """Whether anything goes wrong beside failures."""
        told = self.experiment
        return bool(told.stragglers or told.slow_links or told.silent_corruption)

    def troubles(self, seed: int) -> Troubles:
        """Return what goes wrong in one replication beside failures."""
        silent = self.experiment.silent_corruption
        if silent is None:
            return Troubles(self.slowdowns(seed))
        machines = self.operations.fleet or self.job.machines
        found = tuple(silent.corruptions(machines, seed, self.horizon_ns))
        return Troubles(self.slowdowns(seed), found, silent.persistent_kept)

    def slowdowns(self, seed: int) -> list[Slowdown]:
        """Return the slow machines of one replication, by time; see `strikes`."""
        found: list[Slowdown] = []
        stragglers, links = self.experiment.stragglers, self.experiment.slow_links
        where = (self.operations.fleet or self.job.machines, seed, self.horizon_ns)
        if stragglers:
            found += stragglers.slowdowns(stragglers.training_speed(), *where, "stragglers")
        if links:
            speed = links.training_speed(self.job.iteration_ns, self.job.network_idle_ns)
            found += links.slowdowns(speed, *where, "slow links")
        found.sort(key=lambda one: one.time_ns)
        words = Draws(seed, "set aside").words(len(found))
        away_ns = np.minimum(self._restore_ns(words), MAX_HORIZON_NS).tolist()
        pairs = zip(found, away_ns, strict=True)
        return [one._replace(restore_ns=restore_ns) for one, restore_ns in pairs]


def load_setup(path: str | Path, overrides: tuple[str, ...] = ()) -> Setup:
    """Load an experiment by path or name and resolve it.

    Raises:
        InputError: a file is missing, or something in one is wrong.
    """
    file = find_config("experiments", path)
    experiment = load_toml(file, Experiment, overrides=overrides)
    return resolve(experiment, file)


def resolve(experiment: Experiment, file: Path) -> Setup:
    """Resolve a loaded experiment; `file` is where it came from, for names relative to it.

    Raises:
        InputError: the parts do not fit each other.
    """
    folder = file.parent
    with at(file, "cluster"):
        cluster = load_cluster(experiment.cluster, relative_to=folder)
    with at(file, "model"):
        model = load_model(experiment.model, relative_to=folder)
    machines = experiment.machines or cluster.machines
    trace = _trace(experiment, file, machines)
    watched = _watched(experiment, machines, trace)
    job = _job(experiment, cluster, model, machines, trace, file)
    horizon_ns = _horizon_ns(experiment, job, trace, file)
    costs: dict[str, StrategyCosts] = {}
    placements: dict[str, Placement] = {}
    detections: dict[str, DetectionConfig] = {}
    for name, table in experiment.strategies.items():
        with at(file, f"strategies.{name}"):
            strategy = load_strategy(table, folder) if isinstance(table, OwnStrategy) else table
        replicas = strategy.replicas or experiment.replicas
        kind = strategy.placement or experiment.placement
        detections[name] = detection = strategy.detection or experiment.detection
        own_job = replace(job, replicas=replicas, detection_ns=detection.typical_ns)
        try:
            placements[name] = _placement(experiment, kind, machines, replicas, trace)
            with of_strategy(table):
                costs[name] = strategy.costs(own_job)
                check_costs(
                    costs[name],
                    positions=machines,
                    horizon_ns=horizon_ns,
                    least_iteration_ns=job.iteration_ns,
                )
        except ValueError as error:
            raise InputError(str(error), file=file, key=f"strategies.{name}") from error
    operations = _operations(experiment, machines, watched, file)
    repair = experiment.replacement.repair.distribution() if operations.fleet else None
    failing = operations.fleet or machines
    try:
        process = experiment.failures.generated(failing, repair) if trace is None else None
    except ValueError as error:
        raise InputError(str(error), file=file, key="failures") from error
    price = experiment.gpu_hour_price
    return Setup(
        experiment=experiment,
        folder=folder,
        cluster=cluster,
        model=model,
        job=job,
        costs=costs,
        placements=placements,
        operations=operations,
        detections=detections,
        trace=trace,
        watched=watched,
        process=process,
        horizon_ns=horizon_ns,
        target_iterations=experiment.iterations or 0,
        price_per_gpu_hour=cluster.gpu_hour_price if price is None else price,
    )


@contextmanager
def at(file: Path, key: str) -> Iterator[None]:
    """Say which key of the experiment led to an error that has no place in a file of its own."""
    try:
        yield
    except InputError as error:
        if error.line is not None:
            raise
        raise InputError(str(error), file=file, key=key) from error


def _trace(experiment: Experiment, file: Path, machines: int) -> Trace | None:
    failures = experiment.failures
    if failures.trace is None:
        return None
    beside = file.parent / failures.trace
    with at(file, "failures.trace"):
        trace = load_any(str(beside) if beside.is_file() else failures.trace).trace
    fleet = experiment.replacement.operator == "fleet"
    if not failures.rescale and (
        trace.machines < machines or (not fleet and trace.machines != machines)
    ):
        raise InputError(
            f"the job needs {machines} machines and trace {trace.name!r} has {trace.machines}; set "
            "`machines`, or `failures.rescale = true` to thin the trace or lay it over itself",
            file=file,
            key="failures.trace",
        )
    return trace


def _watched(experiment: Experiment, machines: int, trace: Trace | None) -> int:
    fleet = experiment.replacement.operator == "fleet"
    if trace is None or experiment.failures.rescale:
        return machines + (experiment.replacement.standbys if fleet else 0)
    return trace.machines


def _horizon_ns(experiment: Experiment, job: Job, trace: Trace | None, file: Path) -> int:
    """Return the end of a run; nothing is known of what follows a trace's span."""
    given = experiment.duration
    if experiment.iterations and experiment.iterations * job.iteration_ns > MAX_HORIZON_NS:
        raise InputError("more than 36 years of training", file=file, key="iterations")
    if trace is not None:
        if trace.span_ns > MAX_HORIZON_NS:
            raise InputError("a trace of over 36 years", file=file, key="failures.trace")
        return trace.span_ns if given is None else min(given, trace.span_ns)
    if given is not None:
        return given
    return YEAR_NS if experiment.iterations is None else MAX_HORIZON_NS


def _job(
    experiment: Experiment,
    cluster: Cluster,
    model: Model,
    machines: int,
    trace: Trace | None,
    file: Path,
) -> Job:
    training = experiment.training
    iteration_ns = training.iteration
    if iteration_ns is None:
        try:
            iteration_ns = model.iteration_time_ns(cluster.name)
        except ValueError as error:
            hint = f'{error}, or `training.iteration = "60s"` in the experiment'
            raise InputError(hint, file=file, key="training.iteration") from error
    idle_ns = training.network_idle or model.idle_time.get(cluster.name)
    if idle_ns is None:
        idle_ns = round(iteration_ns * training.idle_share)
    storage_bps = max(1, cluster.storage.bandwidth // training.storage_jobs)
    per_machine = cluster.storage.per_machine_bandwidth
    if per_machine is not None:
        storage_bps = min(storage_bps, per_machine * machines)
    return Job(
        machines=machines,
        gpus_per_machine=cluster.gpus_per_machine,
        replicas=experiment.replicas,
        iteration_ns=iteration_ns,
        network_idle_ns=max(1, idle_ns),
        checkpoint_bytes=training.checkpoint_size or model.checkpoint_bytes,
        network_bps=max(1, int(cluster.network_bandwidth * training.network_efficiency)),
        storage_bps=storage_bps,
        gpu_to_cpu_bps=cluster.gpu_to_cpu_bandwidth,
        torch_save_bps=training.torch_save,
        warm_up_ns=training.warm_up,
        detection_ns=experiment.detection.typical_ns,
        interruptions_per_s=experiment.failures.expected_per_s(machines, trace),
    )


def _operations(experiment: Experiment, machines: int, watched: int, file: Path) -> Operations:
    replacement = experiment.replacement
    fleet = 0
    if replacement.operator == "fleet":
        fleet = watched
        if replacement.standbys > fleet - machines:
            raise InputError(
                f"{replacement.standbys} standbys and {machines} machines are more than the "
                f"{fleet} of the trace",
                file=file,
                key="replacement.standbys",
            )
    operations = Operations(
        positions=machines,
        fleet=fleet,
        standbys=replacement.standbys,
        dedicated=int(replacement.requests == "dedicated"),
        activation_ns=replacement.activation,
    )
    return experiment.detection.watched(operations)


def _placement(
    experiment: Experiment, kind: str, machines: int, replicas: int, trace: Trace | None
) -> Placement:
    """Place the replicas; ValueError where sizes do not fit or nothing says what the domains are.

    Where the trace says it, this is the placement on the trace's own order of machines;
    `Setup.placement` places anew in each replication.
    """
    size = experiment.placement_domains
    domains = [machine // size for machine in range(machines)] if size else None
    if kind == "domains" and domains is None and trace is not None:
        seed = experiment.seed
        sized = rescale(trace, machines, seed) if trace.machines < machines else trace
        domains = domain_numbers(sized, machines)
    if kind == "domains" and domains is None:
        named = ", and the trace names none (its column `domain`)" if trace is not None else ""
        raise ValueError(
            f'`placement = "domains"` needs `placement_domains` (machines of one domain){named}'
        )
    rng = random.Random(experiment.seed)  # noqa: S311 - a placement, not a secret
    return place(kind, machines, replicas, domains=domains, rng=rng)
