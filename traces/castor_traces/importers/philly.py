"""Philly (Jeon et al., ATC 2019): failed attempts of training jobs on Microsoft's clusters."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from castor_configs.errors import InputError
from castor_traces.importers.published import (
    Imported,
    MalformedRowError,
    RowLog,
    local_instant,
    ns_between,
    one_line,
    read_published,
)
from castor_traces.trace import Failure, make_trace

_INSTANT = "%Y-%m-%d %H:%M:%S"
_STATES = ("Pass", "Killed", "Failed")

_SOURCE = "Philly cluster_job_log (Jeon et al., ATC 2019), msr-fiddle/philly-traces"
_LICENCE = "provided as is; cite the ATC 2019 paper"


@dataclass(frozen=True, slots=True)
class _Attempt:
    start: datetime | None
    end: datetime | None
    servers: tuple[str, ...]
    gpus: int
    failed: bool


@dataclass(frozen=True, slots=True)
class _Job:
    name: str
    submitted: datetime
    attempts: tuple[_Attempt, ...]


def import_philly(path: str | Path, skip_bad: bool = False) -> Imported:
    """Read the failures of jobs from `cluster_job_log`.

    These are failures of jobs, not of machines. An attempt failed if the scheduler tried the job
    again after it, or if it was the last one and the job's status is "Failed"; "Killed" is a
    person's choice and no failure. The failure falls at the attempt's "end_time"; one without an
    end is left out and counted in the note "without_end", as the log's authors warn of those.

    The machine is the attempt's server if it ran on one; with several, the log does not say
    which was at fault: "any". Machines: the servers named in any attempt, in the order of their
    numbers. All are software: the servers ran on, and the study found most causes in users'
    programs. Durations are unknown. Times are local clock readings (see `local_instant`), from
    the first submission to the last instant in the log.

    Args:
        path: cluster_job_log, a JSON list of jobs (read whole into memory).
        skip_bad: leave malformed jobs out and count them; a job's line is its number, from 1.

    Raises:
        InputError: no such file, no job that ran, or a malformed job, with its number.
    """
    file = str(path)
    try:
        records = json.loads(read_published(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"no valid JSON: {error}", file=file) from None
    if not isinstance(records, list):
        raise InputError("expected a list of jobs", file=file)
    log = RowLog(file, skip_bad)
    jobs: list[_Job] = []
    for number, record in enumerate(records, start=1):
        with log.row(number):
            jobs.append(_job(record))
    names = sorted({s for j in jobs for a in j.attempts for s in a.servers}, key=_natural)
    if not names:
        raise InputError("no attempt of any job names a server", file=file)
    machine_of = {name: number for number, name in enumerate(names)}
    start = min(_instants(jobs))
    failures = [
        Failure(
            ns_between(start, attempt.end),
            machine_of[attempt.servers[0]] if len(attempt.servers) == 1 else None,
            "software",
            cause=one_line(f"{job.name} on {len(attempt.servers)} servers, {attempt.gpus} GPUs"),
        )
        for job in jobs
        for attempt in job.attempts
        if attempt.failed and attempt.end is not None
    ]
    lost = sum(a.failed and a.end is None for job in jobs for a in job.attempts)
    trace = make_trace(
        "philly",
        len(names),
        ns_between(start, max(_instants(jobs))),
        failures,
        source=_SOURCE,
        licence=_LICENCE,
        notes=[
            ("start", f"{start:%Y-%m-%d %H:%M:%S} local time"),
            ("failures_of", "jobs"),
            ("without_end", f"{lost} failed attempts without an end time are left out"),
        ],
    )
    return log.imported(trace)


def _instants(jobs: list[_Job]) -> list[datetime]:
    found = [job.submitted for job in jobs]
    found += [a.start for job in jobs for a in job.attempts if a.start is not None]
    found += [a.end for job in jobs for a in job.attempts if a.end is not None]
    return found


def _job(record: Any) -> _Job:
    if not isinstance(record, dict):
        raise MalformedRowError(f"expected an object, not {record!r}")
    status, attempts = record.get("status"), record.get("attempts")
    if status not in _STATES:
        raise MalformedRowError(f"status: expected one of {', '.join(_STATES)}, not {status!r}")
    if not isinstance(attempts, list):
        raise MalformedRowError(f"attempts: expected a list, not {attempts!r}")
    submitted = _instant(record.get("submitted_time"), "submitted_time")
    if submitted is None:
        raise MalformedRowError("submitted_time: expected a time, found none")
    last = len(attempts) - 1
    return _Job(
        name=str(record.get("jobid", "")),
        submitted=submitted,
        attempts=tuple(
            _attempt(attempt, failed=index < last or status == "Failed")
            for index, attempt in enumerate(attempts)
        ),
    )


def _attempt(record: Any, *, failed: bool) -> _Attempt:
    if not isinstance(record, dict) or not isinstance(record.get("detail"), list):
        raise MalformedRowError("attempts: expected objects with start_time, end_time and detail")
    start = _instant(record.get("start_time"), "start_time")
    end = _instant(record.get("end_time"), "end_time")
    if start is not None and end is not None and end < start:
        raise MalformedRowError(f"an attempt ended ({end}) before it started ({start})")
    servers: dict[str, int] = {}
    for place in record["detail"]:
        if not isinstance(place, dict) or not isinstance(place.get("ip"), str):
            raise MalformedRowError("detail: expected objects with ip and gpus")
        gpus = place.get("gpus")
        servers[place["ip"]] = len(gpus) if isinstance(gpus, list) else 0
    return _Attempt(start, end, tuple(servers), sum(servers.values()), failed)


def _instant(text: Any, what: str) -> datetime | None:
    # The log writes a missing time as null, and some of its copies as the word.
    if text is None or text in ("", "None"):
        return None
    if not isinstance(text, str):
        raise MalformedRowError(f"{what}: expected a time, not {text!r}")
    return local_instant(text, _INSTANT, what)


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort "m9" before "m10"."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts)
