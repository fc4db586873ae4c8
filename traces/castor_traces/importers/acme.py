"""Acme (Hu et al., NSDI 2024): failed jobs of two clusters for language models."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from castor_configs.errors import InputError
from castor_traces.importers.published import (
    Imported,
    MalformedRowError,
    RowLog,
    Table,
    fields_of,
    ns_between,
    one_line,
    read_published,
)
from castor_traces.trace import Failure, FailureKind, make_trace

_COLUMNS = (
    *("job_id", "node_num", "gpu_num", "type", "state"),
    *("submit_time", "start_time", "end_time"),
)
_KINDS: dict[str, FailureKind] = {"FAILED": "software", "NODE_FAIL": "hardware"}
_OTHER_STATES = ("COMPLETED", "CANCELLED", "TIMEOUT")
#: Servers of eight A100 each (NSDI 2024, table 1); the files do not say.
_MACHINES = {"seren": 286, "kalos": 302}

_SOURCE = "Acme job trace (Hu et al., NSDI 2024), InternLM/AcmeTrace"
_LICENCE = "see LICENSE.txt in the repository; cite the NSDI 2024 paper"


def import_acme(
    path: str | Path,
    skip_bad: bool = False,
    *,
    machines: int | None = None,
    gpu_jobs_only: bool = True,
) -> Imported:
    """Read the failures of jobs from trace_seren.csv or trace_kalos.csv.

    These are failures of jobs, not of machines: state FAILED is software, NODE_FAIL ("the node
    crashed") hardware. CANCELLED is a person's choice and TIMEOUT a limit reached: no failures.
    The failure falls at "fail_time" where the file has one (Kalos), else at "end_time". The file
    names no machines: every failure is of "any", its duration unknown.

    Times carry their offset from UTC and are exact; the trace runs from the first submission to
    the last instant of any job.

    Args:
        path: the published CSV.
        skip_bad: leave malformed rows out and count them.
        machines: None: 286 for a file named after Seren, 302 after Kalos.
        gpu_jobs_only: leave out jobs without a GPU (data preparation and the like).

    Raises:
        InputError: no such file, machines unknown, or a malformed row, with its line.
    """
    file = str(path)
    name = next((known for known in _MACHINES if known in Path(path).name.lower()), "")
    if machines is None:
        if not name:
            raise InputError(
                "the file names no machines: say how many there were, or name the file after "
                "seren or kalos",
                file=file,
                key="machines",
            )
        machines = _MACHINES[name]
    log = RowLog(file, skip_bad)
    table = Table(file, read_published(path), _COLUMNS, "Acme job trace")
    found: list[tuple[datetime, FailureKind, str]] = []
    start = end = None
    for line, text, header in table.lines():
        with log.row(line):
            row = fields_of(text, header)
            if row["state"] not in _KINDS and row["state"] not in _OTHER_STATES:
                raise MalformedRowError(f"state: unknown {row['state']!r}")
            submitted = _instant(row["submit_time"], "submit_time")
            if submitted is None:
                raise MalformedRowError("submit_time: expected a time, found none")
            ended = _instant(row["end_time"], "end_time")
            failed = _instant(row.get("fail_time", ""), "fail_time") or ended
            has_gpu = _is_positive(row["gpu_num"])
            if row["state"] in _KINDS and (has_gpu or not gpu_jobs_only):
                if failed is None:
                    raise MalformedRowError(f"state {row['state']}, but no time of its end")
                if failed < submitted:
                    raise MalformedRowError("it failed before it was submitted")
                found.append((failed, _KINDS[row["state"]], _cause(row)))
            instants = [t for t in (submitted, ended, failed) if t is not None]
            start = min(instants) if start is None else min(start, *instants)
            end = max(instants) if end is None else max(end, *instants)
    if start is None or end is None:
        raise InputError("no jobs", file=file)
    trace = make_trace(
        f"acme-{name}" if name else "acme",
        machines,
        ns_between(start, end),
        [Failure(ns_between(start, at), None, kind, cause=cause) for at, kind, cause in found],
        source=_SOURCE,
        licence=_LICENCE,
        notes=[("start", start.astimezone(UTC).isoformat()), ("failures_of", "jobs")],
    )
    return log.imported(trace)


def _cause(row: dict[str, str]) -> str:
    kind, nodes, gpus = row["type"], row["node_num"], row["gpu_num"]
    return one_line(f"{row['state']}: {kind}, {nodes} nodes, {gpus} GPUs, job {row['job_id']}")


def _instant(text: str, what: str) -> datetime | None:
    if not text:
        return None
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise MalformedRowError(f"{what}: expected a time, not {text!r}") from None
    if instant.tzinfo is None:
        raise MalformedRowError(f"{what}: expected an offset from UTC, as in +08:00: {text!r}")
    return instant


def _is_positive(text: str) -> bool:
    try:
        return float(text or 0) > 0
    except ValueError:
        raise MalformedRowError(f"gpu_num: expected a number, not {text!r}") from None
