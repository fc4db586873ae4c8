"""What `castor train` is asked to do, checked as a whole before anything is started."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from castor_configs.errors import InputError
from castor_configs.job import Job, LaunchOptions
from castor_configs.nearest import nearest_name
from castor_configs.schemes import SCHEMES
from castor_policy.agents.job_spec import JobSpec
from castor_policy.job_options import NCCL
from castor_policy.option import OptionError
from castor_policy.placement import Placement, place
from castor_runtime.launcher.shared_gpus import is_driver_here
from castor_runtime.operators import LOCAL, check_operator
from castor_runtime.store_address import parse_store

EMBEDDED = "embedded"
JOB_NAME_MAX = 32

_JOB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """One run, as checked.

    Attributes:
        spec: the job; `run` and `started_ns` are set when it starts.
        out: its run folder.
        store: "embedded" or etcd://host:port[,...].
        standby: machines that wait from the start.
        domains: of each emulated machine the failure domain's name; none: they have none.
        local_agents: the launcher starts the agents; else they are started elsewhere.
        placed_by_agents: the job's placement is made from the failure domains of its agents.
        operator: URL of who brings machines that external agents ask for; "": nobody.
        metrics: each emulated machine serves its metrics, at a port of its own.
        overwrite: an earlier run's result in `out` may go.
        command: as it was typed, for result.json.
        compute: "real", or "paced" where waits stand for work.
        notes: what is said of the run when it begins.
        resume: go on with the run that `spec` names, from what is kept in memory.
        job_file: the job as it was given, for who wants to run it again; "": none was.
    """

    spec: JobSpec
    out: Path
    store: str = EMBEDDED
    standby: int = 0
    domains: tuple[str, ...] = ()
    local_agents: bool = True
    placed_by_agents: bool = False
    operator: str = ""
    metrics: bool = False
    overwrite: bool = False
    command: tuple[str, ...] = ()
    compute: str = "real"
    notes: tuple[str, ...] = ()
    resume: bool = False
    job_file: str = ""


def job_spec(job: Job) -> JobSpec:
    """Return what a job is to its agents.

    Raises:
        OptionError: options do not go together, or the script is not there; by its dotted key.
        InputError: the scheme is a plugin's that cannot be used.
    """
    launch = job.launch
    if not Path(job.script).is_file():
        raise OptionError("script", f"there is no such script: {job.script}")
    name = launch.job or job_name(Path(job.script), secrets.token_hex(3))
    try:
        check_job_name(name)
    except InputError as error:
        raise OptionError("job", error.message) from error
    placed = _placed(launch)
    if job.traffic.scheme in SCHEMES:
        SCHEMES[job.traffic.scheme]  # a plugin's: here is where it is told that it is broken
    return JobSpec(
        job=name,
        machines=launch.nodes,
        ranks_per_machine=launch.ranks_per_node,
        placement=placed.kind,
        replicas=placed.replicas,
        script=job.script,
        arguments=job.arguments,
        allow_changed_script=launch.allow_changed_script,
        **job.groups(),
    )


def check_launch(launch: LaunchOptions) -> None:
    """Check where a job's store, agents and machines are to come from.

    Raises:
        OptionError: they cannot come from there.
    """
    try:
        check_store(launch.store)
    except InputError as error:
        raise OptionError("store", error.message) from error
    local = launch.agents == "local"
    if launch.operator:
        try:
            check_operator(launch.operator)
        except InputError as error:
            raise OptionError("operator", error.message) from error
        if local != (launch.operator == LOCAL):
            raise OptionError(
                "operator", "local: goes with --agents local, all others with external"
            )
    if not local and launch.standby:
        raise OptionError("standby", "external agents are standbys by their own --standby")


def check_send(spec: JobSpec) -> None:
    """Refuse to send by NCCL what is trained on this machine's processors.

    Raises:
        OptionError: there is no GPU here, nor a stand-in for one.
    """
    stands_for_one = spec.device.maker or spec.device.paced_copy_bps
    if spec.traffic.send == NCCL and not stands_for_one and not _trains_on_gpus():
        raise OptionError(
            "traffic.send",
            "nccl sends from GPUs, and training is on the CPU here: leave it at cpu, the default",
        )


def _trains_on_gpus() -> bool:
    return is_driver_here() and os.environ.get("DS_ACCELERATOR") != "cpu"


def check_script(script: Path, castor_options: Sequence[str]) -> None:
    """Refuse what is no script, and tell an option that was written before it from one.

    Raises:
        InputError: there is no such script.
    """
    if not script.is_file():
        hint = ""
        if str(script).startswith("-"):
            near = nearest_name(str(script).partition("=")[0], castor_options)
            meant = f"; did you mean {near} of castor train?" if near else ""
            hint = f": name the SCRIPT before its own options{meant}"
        raise InputError(f"there is no such script{hint}", file=script)


def check_job_name(job: str) -> None:
    """Refuse a name that cannot be part of a key, a file and a segment of shared memory.

    Raises:
        InputError: it cannot.
    """
    if not _JOB_NAME.fullmatch(job) or len(job) > JOB_NAME_MAX:
        raise InputError(
            f"expected at most {JOB_NAME_MAX} letters, digits, '_', '.' or '-', a letter or digit "
            f"first, not {job!r}",
            key="--job",
        )


def job_name(script: Path, suffix: str) -> str:
    """Return a job's name after its script, where the user gives none."""
    stem = re.sub(r"[^A-Za-z0-9_]+", "-", script.stem).strip("-_") or "job"
    return f"{stem[: JOB_NAME_MAX - len(suffix) - 1]}-{suffix}"


def check_store(url: str, *, embedded: bool = True) -> str:
    """Return the store's address, checked in form.

    Raises:
        InputError: neither "embedded" (where that may be) nor a store's URL; or a file or the
            password that the store asks for is missing.
    """
    if embedded and url == EMBEDDED:
        return url
    try:
        parse_store(url)
    except ValueError as error:
        also = "; or embedded" if embedded else ""
        raise InputError(f"{error}{also}", key="--store") from error
    return url


def _placed(launch: LaunchOptions) -> Placement:
    nodes, replicas, domains = launch.nodes, launch.replicas, launch.domains
    if replicas > nodes:
        raise OptionError(
            "replicas",
            f"expected 1 to {nodes} (the nodes), not {replicas}: each copy of a shard is on "
            "another machine",
        )
    if is_placed_by_agents(launch):
        # Not settled: it is made from what the agents say.
        return replace(place("mixed", nodes, replicas), kind="domains")
    if (launch.placement == "domains") != bool(domains):
        raise OptionError(
            "domains",
            "`--placement domains` and `--domains` (machines of a failure domain) go together, but "
            "with external agents, which say theirs (castor agent --domain)",
        )
    of_machines = _domains(domains, nodes) if domains else None
    return place(launch.placement, nodes, replicas, domains=of_machines)


def is_placed_by_agents(launch: LaunchOptions) -> bool:
    """Whether a job's placement waits for its agents to say what they fail with."""
    return launch.placement == "domains" and not launch.domains and launch.agents == "external"


def domain_names(launch: LaunchOptions) -> tuple[str, ...]:
    """Return by what name each emulated machine's agent calls its failure domain.

    Raises:
        OptionError: `domains` are no sizes of domains.
    """
    found = _domains(launch.domains, launch.nodes) if launch.domains else ()
    return tuple(f"domain-{number}" for number in found)


def _domains(sizes: str, nodes: int) -> list[int]:
    """Return the failure domain of each machine: of "4", or of "4,4,3" one size after the other."""
    parts = [part.strip() for part in sizes.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise OptionError(
            "domains", f"expected machines of a failure domain, such as 4, or 4,4,3, not {sizes!r}"
        )
    if len(parts) == 1:
        return [machine // int(parts[0]) for machine in range(nodes)]
    if sum(map(int, parts)) != nodes:
        raise OptionError(
            "domains", f"{sizes} are {sum(map(int, parts))} machines, and --nodes says {nodes}"
        )
    return [domain for domain, size in enumerate(parts) for _ in range(int(size))]
