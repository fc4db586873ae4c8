"""What `castor train` is asked to do, checked as a whole before anything is started."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from castor_configs import written_defaults
from castor_configs.errors import InputError
from castor_configs.nearest import nearest_name
from castor_configs.plugins import not_one_of
from castor_configs.quantities import parse_bps, parse_bytes, parse_seconds
from castor_configs.schemes import SCHEMES
from castor_policy import defaults
from castor_policy.agents.job_spec import JobSpec
from castor_policy.interleaving import EAGER, NONE
from castor_policy.job_options import (
    DeviceOptions,
    MemoryOptions,
    PersistenceOptions,
    RecoveryOptions,
    TrafficOptions,
)
from castor_policy.membership import WatchLimits, check_lease
from castor_policy.placement import Placement, place
from castor_runtime.store_address import parse_store

EMBEDDED = "embedded"
PLACEMENTS = ("mixed", "group", "ring", "domains")
JOB_NAME_MAX = 32
SHORTEST_LIMIT_S = 0.5

ValueT = TypeVar("ValueT")

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
        operator: URL of who brings machines that external agents ask for; "": nobody.
        overwrite: an earlier run's result in `out` may go.
        command: as it was typed, for result.json.
        compute: "real", or "paced" where waits stand for work.
        notes: what is said of the run when it begins.
        resume: go on with the run that `spec` names, from what is kept in memory.
    """

    spec: JobSpec
    out: Path
    store: str = EMBEDDED
    standby: int = 0
    domains: tuple[str, ...] = ()
    local_agents: bool = True
    operator: str = ""
    overwrite: bool = False
    command: tuple[str, ...] = ()
    compute: str = "real"
    notes: tuple[str, ...] = ()
    resume: bool = False


def job_spec(
    *,
    job: str,
    script: Path,
    arguments: Sequence[str],
    nodes: int,
    ranks_per_node: int,
    replicas: int,
    placement: str,
    domains: str = "",
    persist: str,
    persist_every: str,
    persist_keep: int,
    lease: str,
    scheme: str,
    chunk: str,
    memory_limit: str,
    max_attempts: int,
    set_aside_after: int = 3,
    castor_options: Sequence[str] = (),
    checkpoint_every: int = defaults.CHECKPOINT_EVERY,
    mu: float = defaults.MU,
    buffer: str = "",
    sub_buffers: int = defaults.SUB_BUFFERS,
    shortest_span: str = written_defaults.SHORTEST_SPAN,
    device: str = "",
    paced_copy: str = "",
    hang: str = written_defaults.HANG,
    stall: str = written_defaults.STALL,
    startup: str = written_defaults.STARTUP,
    allow_changed_script: bool = False,
) -> JobSpec:
    """Check what a job is made of and return it.

    Raises:
        InputError: naming the option at fault.
    """
    _check_script(script, castor_options)
    check_job_name(job)
    for option, value in (
        ("--nodes", nodes),
        ("--ranks-per-node", ranks_per_node),
        ("--persist-keep", persist_keep),
        ("--max-attempts", max_attempts),
        ("--sub-buffers", sub_buffers),
        ("--checkpoint-every", checkpoint_every),
    ):
        if value < 1:
            raise InputError(f"must be 1 or more, not {value}", key=option)
    _check_names(placement, scheme)
    if scheme == NONE and persist:
        raise InputError(
            "scheme none takes no checkpoint that could be persisted: choose another scheme",
            key="--persist",
        )
    placed = _placed(placement, domains, nodes, replicas)
    every_s = _parsed(parse_seconds, persist_every, "--persist-every")
    lease_s = _parsed(parse_seconds, lease, "--lease")
    chunk_bytes = _parsed(parse_bytes, chunk, "--chunk")
    try:
        check_lease(lease_s)
    except ValueError as error:
        raise InputError(str(error), key="--lease") from error
    if every_s <= 0:
        raise InputError("must be above 0", key="--persist-every")
    if chunk_bytes < 4096 or chunk_bytes % 4096:
        raise InputError("expected a multiple of 4 KiB, such as 16MiB", key="--chunk")
    if not 0 < mu <= 1:
        raise InputError(f"expected a share above 0 and up to 1, not {mu}", key="--mu")
    buffer_bytes = _parsed(parse_bytes, buffer, "--buffer") if buffer else 0
    if buffer and buffer_bytes < sub_buffers:
        reason = f"each of its {sub_buffers} sub-buffers holds a byte or more"
        raise InputError(reason, key="--buffer")
    return JobSpec(
        job=job,
        machines=nodes,
        ranks_per_machine=ranks_per_node,
        placement=placed.kind,
        replicas=placed.replicas,
        script=str(script.resolve()),
        arguments=tuple(arguments),
        limits=WatchLimits(
            lease_s=lease_s,
            hang_s=_limit_s(hang, "--hang"),
            stall_s=_limit_s(stall, "--stall"),
            startup_s=_limit_s(startup, "--startup"),
        ),
        persistence=PersistenceOptions(
            path=str(Path(persist).resolve()) if persist else "",
            every_s=every_s,
            keep=persist_keep,
        ),
        traffic=TrafficOptions(
            scheme=scheme,
            checkpoint_every=checkpoint_every,
            mu=mu,
            chunk_bytes=chunk_bytes,
            buffer_bytes=buffer_bytes,
            sub_buffers=sub_buffers,
            shortest_span_s=_parsed(parse_seconds, shortest_span, "--shortest-span"),
        ),
        memory=MemoryOptions(limit_bytes=memory_limit_bytes(memory_limit)),
        recovery=RecoveryOptions(max_attempts=max_attempts, set_aside_after=set_aside_after),
        device=DeviceOptions(
            maker=device,
            paced_copy_bps=_parsed(parse_bps, paced_copy, "--paced-copy") if paced_copy else 0,
        ),
        allow_changed_script=allow_changed_script,
    )


def memory_limit_bytes(text: str) -> int:
    """Return the most bytes that checkpoints may take on a machine; 0, for "", is no limit.

    Raises:
        InputError: it is no size.
    """
    return _parsed(parse_bytes, text, "--memory-limit") if text else 0


def _limit_s(text: str, option: str) -> float:
    limit_s = _parsed(parse_seconds, text, option)
    if limit_s < SHORTEST_LIMIT_S:
        raise InputError(
            f"expected {SHORTEST_LIMIT_S:g} s or more: a loaded machine is silent for as long",
            key=option,
        )
    return limit_s


def _check_script(script: Path, castor_options: Sequence[str]) -> None:
    if not script.is_file():
        hint = ""
        if str(script).startswith("-"):
            near = nearest_name(str(script).partition("=")[0], castor_options)
            meant = f"; did you mean {near} of castor train?" if near else ""
            hint = f": name the SCRIPT before its own options{meant}"
        raise InputError(f"there is no such script{hint}", file=script)


def _check_names(placement: str, scheme: str) -> None:
    if placement not in PLACEMENTS:
        raise InputError(not_one_of(placement, PLACEMENTS), key="--placement")
    if scheme not in (NONE, EAGER):
        SCHEMES.choose(scheme, "--scheme", (NONE, EAGER))


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


def _placed(placement: str, domains: str, nodes: int, replicas: int) -> Placement:
    if not 1 <= replicas <= nodes:
        raise InputError(
            f"expected 1 to {nodes} (the nodes), not {replicas}: each copy of a shard is on "
            "another machine",
            key="--replicas",
        )
    if (placement == "domains") != bool(domains):
        raise InputError(
            "`--placement domains` and `--domains` (machines of a failure domain) go together",
            key="--domains",
        )
    of_machines = _domains(domains, nodes) if domains else None
    return place(placement, nodes, replicas, domains=of_machines)


def domain_names(sizes: str, nodes: int) -> tuple[str, ...]:
    """Return by what name each emulated machine's agent calls its failure domain.

    Raises:
        InputError: `sizes` are no sizes of domains.
    """
    return tuple(f"domain-{number}" for number in _domains(sizes, nodes)) if sizes else ()


def _domains(sizes: str, nodes: int) -> list[int]:
    """Return the failure domain of each machine: of "4", or of "4,4,3" one size after the other."""
    parts = [part.strip() for part in sizes.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise InputError(
            f"expected machines of a failure domain, such as 4, or 4,4,3, not {sizes!r}",
            key="--domains",
        )
    if len(parts) == 1:
        return [machine // int(parts[0]) for machine in range(nodes)]
    if sum(map(int, parts)) != nodes:
        raise InputError(
            f"{sizes} are {sum(map(int, parts))} machines, and --nodes says {nodes}",
            key="--domains",
        )
    return [domain for domain, size in enumerate(parts) for _ in range(int(size))]


def _parsed(parser: Callable[[object], ValueT], text: str, option: str) -> ValueT:
    try:
        return parser(text)
    except ValueError as error:
        raise InputError(str(error), key=option) from error
