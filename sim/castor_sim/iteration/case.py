"""From an experiment, or a measured profile, to the iteration to simulate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from castor_configs.cluster import Cluster, load_cluster
from castor_configs.errors import InputError
from castor_configs.find import find_config
from castor_configs.load import load_toml
from castor_configs.model import Model, load_model
from castor_policy.chunk_schedule import Link
from castor_sim.experiment import Experiment
from castor_sim.iteration.measured import MeasuredProfile
from castor_sim.iteration.pipeline import pipeline_tasks
from castor_sim.iteration.run import CheckpointTraffic, IterationCase
from castor_sim.iteration.tasks import Task
from castor_sim.iteration.workload import (
    GRADIENT_BYTES,
    Speeds,
    data_tasks,
    hybrid_tasks,
    model_blocks,
    zero3_tasks,
)
from castor_sim.iteration_config import IterationConfig

NS_PER_S = 10**9
_SHARDED = {"zero3": zero3_tasks, "hybrid": hybrid_tasks, "data": data_tasks}


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationSetup:
    """An experiment's iteration.

    Attributes:
        experiment: as loaded.
        cluster, model: what it names.
        case: the iteration.
        failures_per_s: of the whole job; None where a trace says when failures come.
        retrieval_s: to fetch a shard from a peer.
    """

    experiment: Experiment
    cluster: Cluster
    model: Model
    case: IterationCase
    failures_per_s: float | None
    retrieval_s: float


def load_iteration(
    path: str | Path, overrides: tuple[str, ...] = (), profile: MeasuredProfile | None = None
) -> IterationSetup:
    """Load an experiment by path or name, and lay out its iteration.

    Args:
        path: of the experiment.
        overrides: `key=value` for its keys.
        profile: measured; takes the place of what model and cluster would give.

    Raises:
        InputError: a file is missing, or something in one is wrong or missing for an iteration.
    """
    file = find_config("experiments", path)
    experiment = load_toml(file, Experiment, overrides=overrides)
    cluster = load_cluster(experiment.cluster, relative_to=file.parent)
    model = load_model(experiment.model, relative_to=file.parent)
    machines = experiment.machines or cluster.machines
    if profile is None and experiment.replicas > machines:
        raise InputError(
            f"is {experiment.replicas}; use 1 to {machines}, the number of machines, since each "
            "copy lies on a different machine",
            file=file,
            key="replicas",
        )
    try:
        if profile is not None:
            case = case_of_profile(profile, experiment)
        else:
            training = experiment.training
            stated = "network_efficiency" in training.model_fields_set
            case = case_of_model(
                model,
                cluster,
                machines,
                experiment.iteration,
                replicas=experiment.replicas,
                seed=experiment.seed,
                checkpoint_bytes=training.checkpoint_size,
                checkpoint_efficiency=training.network_efficiency if stated else None,
            )
    except ValueError as error:
        raise InputError(str(error), file=file, key="iteration") from error
    failures = experiment.failures
    rate = failures.expected_per_s(machines, None) if failures.trace is None else None
    traffic = case.traffic
    return IterationSetup(
        experiment=experiment,
        cluster=cluster,
        model=model,
        case=case,
        failures_per_s=rate,
        retrieval_s=traffic.link.transfer_ns(traffic.shard_bytes) / NS_PER_S,
    )


def case_of_model(
    model: Model,
    cluster: Cluster,
    machines: int,
    config: IterationConfig,
    *,
    replicas: int = 2,
    seed: int = 1,
    checkpoint_bytes: int | None = None,
    checkpoint_efficiency: float | None = None,
) -> IterationCase:
    """Return the iteration of a model on a cluster, from its calibration.

    Args:
        model: its shape gives bytes and FLOP.
        cluster: its hardware, and what training reaches of it.
        machines: N.
        config: the layout.
        replicas: m.
        seed: of the jitter.
        checkpoint_bytes: the whole model state; by default the model's.
        checkpoint_efficiency: by default the cluster's.

    Raises:
        ValueError: the cluster does not say what is needed, or the parts do not fit each other.
    """
    calibration = cluster.calibration
    efficiency = checkpoint_efficiency or calibration.checkpoint_efficiency
    checkpoint_bytes = checkpoint_bytes or model.checkpoint_bytes
    gpus = cluster.gpus_per_machine
    traffic = _traffic(
        config,
        shard_bytes=-(-checkpoint_bytes // (machines * gpus)),
        replicas=replicas,
        link=_share(cluster.network_alpha, cluster.network_bandwidth * efficiency / gpus),
        copy_link=_share(0.0, cluster.gpu_to_cpu_bandwidth * calibration.copy_efficiency / gpus),
        free_bytes=config.free_gpu_memory,
    )
    stages = machines if config.parallelism == "pipeline" else 1
    return IterationCase(
        name=f"{model.name} on {machines} {cluster.name}, {config.parallelism}",
        tasks=model_tasks(model, cluster, machines, config),
        machines=stages,
        gpus=gpus,
        traffic=traffic,
        jitter=config.jitter,
        seed=seed,
        profiled=config.profiled,
        measured=config.measured,
        network_share=_network_share(config, cluster),
    )


def case_of_profile(profile: MeasuredProfile, experiment: Experiment) -> IterationCase:
    """Return the iteration that was measured, with the experiment's scheme settings.

    Raises:
        ValueError: the parts do not fit each other.
    """
    return measured_case(
        profile,
        experiment.iteration,
        replicas=profile.replicas or experiment.replicas,
        seed=experiment.seed,
    )


def measured_case(
    profile: MeasuredProfile, config: IterationConfig, *, replicas: int, seed: int = 1
) -> IterationCase:
    """Return the iteration that was measured, with the scheme settings of `config`.

    Args:
        profile: measured; see `MeasuredProfile.at_link` for another bandwidth.
        config: buffer, sub_buffers, mu and so on; its layout is not used.
        replicas: m.
        seed: of the jitter.

    Raises:
        ValueError: the parts do not fit each other.
    """
    free_bytes = profile.free_gpu_memory
    traffic = _traffic(
        config,
        shard_bytes=profile.shard,
        replicas=replicas,
        link=profile.network.link(),
        copy_link=None if profile.copy_to_cpu is None else profile.copy_to_cpu.link(),
        free_bytes=config.free_gpu_memory if free_bytes is None else free_bytes,
    )
    return IterationCase(
        name=f"{profile.name}, measured",
        tasks=profile.tasks(),
        machines=1,
        gpus=profile.gpus,
        traffic=replace(
            traffic,
            capture_ns=profile.capture,
            commit_ns=profile.commit,
            late_ns=profile.late,
        ),
        jitter=max(config.jitter, profile.jitter),
        seed=seed,
        profiled=config.profiled,
        measured=config.measured,
    )


def model_tasks(
    model: Model, cluster: Cluster, machines: int, config: IterationConfig
) -> tuple[Task, ...]:
    """Return the operations of an iteration.

    Raises:
        ValueError: the cluster does not say what is needed, or has fewer blocks than stages.
    """
    gpus = cluster.gpus_per_machine
    speeds = _speeds(model, cluster, machines)
    blocks = model_blocks(model, recompute=config.recompute)
    if config.parallelism == "pipeline":
        tokens = model.micro_batch * model.sequence_length
        return pipeline_tasks(
            blocks,
            speeds,
            stages=machines,
            gpus=gpus,
            micro_batches=config.micro_batches,
            message_bytes=GRADIENT_BYTES * tokens * model.hidden,
        )
    layout = _SHARDED[config.parallelism]
    return layout(blocks, speeds, machines=machines, gpus=gpus, prefetch=config.prefetch)


def _speeds(model: Model, cluster: Cluster, machines: int) -> Speeds:
    gpus, calibration = cluster.gpus_per_machine, cluster.calibration
    if cluster.gpu_peak_tflops is None:
        raise ValueError(
            f"cluster {cluster.name} does not say how fast its GPU is: set gpu_peak_tflops"
        )
    links = cluster.gpu_link_bandwidth
    if links is None:
        if gpus > 1:
            raise ValueError(
                f"cluster {cluster.name} does not say how its GPUs are linked: set "
                "gpu_link_bandwidth"
            )
        links = cluster.gpu_to_cpu_bandwidth
    giga_parameters = model.parameters / (machines * gpus) / 1e9
    return Speeds(
        flop_per_s=max(1, int(cluster.gpu_peak_tflops * 1e12 * calibration.compute_efficiency)),
        collective=_share(
            cluster.network_alpha, cluster.network_bandwidth * calibration.collective_efficiency
        ),
        link=Link(0, links),
        check_ns=round(calibration.gradient_check * giga_parameters * NS_PER_S),
        update_ns=round(calibration.update * giga_parameters * NS_PER_S),
    )


def _traffic(
    config: IterationConfig,
    *,
    shard_bytes: int,
    replicas: int,
    link: Link,
    copy_link: Link | None,
    free_bytes: int,
) -> CheckpointTraffic:
    return CheckpointTraffic(
        shard_bytes=shard_bytes,
        remote_copies=replicas - 1,
        link=link,
        copy_link=copy_link,
        buffer_bytes=config.buffer,
        sub_buffers=config.sub_buffers,
        mu=Fraction(repr(config.mu)),
        shortest_span_ns=config.shortest_span,
        free_bytes=free_bytes,
    )


def _network_share(config: IterationConfig, cluster: Cluster) -> Fraction:
    left = cluster.network_bandwidth - config.storage_traffic
    if left <= 0:
        raise ValueError(
            "storage_traffic leaves nothing of the network card: give less than "
            f"{cluster.network_bandwidth / 1e9:g} Gbps"
        )
    return Fraction(left, cluster.network_bandwidth)


def _share(alpha_s: float, bandwidth_bps: float) -> Link:
    return Link(round(alpha_s * NS_PER_S), max(1, int(bandwidth_bps)))
