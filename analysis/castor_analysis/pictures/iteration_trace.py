"""A simulated iteration as a Chrome trace for Perfetto: a process a scheme, a thread a lane."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from castor_analysis.pictures.tracks import chrome_trace, complete
from castor_sim.iteration.run import IterationReport, SchemeResult
from castor_sim.iteration.tasks import Lane
from castor_sim.iteration.timeline import COPY_LANE

LANES = (Lane.GPU, Lane.NETWORK, COPY_LANE, Lane.LINK)
"""In the order in which they are shown."""


def iteration_chrome_trace(report: IterationReport) -> dict[str, Any]:
    """Return every scheme's iteration in the Trace Event Format, which `json.dumps` takes.

    Times are in microseconds, as the format wants them. Where machines differ (pipeline
    parallelism), each has its own threads.
    """
    events: list[dict[str, Any]] = []
    for process, result in enumerate(report.results.values(), start=1):
        events.extend(_named(process, result, report.case.machines))
        events.extend(
            complete(
                process,
                _thread(interval.machine, interval.lane),
                interval.name,
                interval.start_ns,
                interval.start_ns + interval.duration_ns,
                {"kind": str(interval.kind), "bytes": interval.size_bytes},
                category=str(interval.kind),
            )
            for interval in result.intervals
        )
    return chrome_trace(events)


def _named(process: int, result: SchemeResult, machines: int) -> Iterator[dict[str, Any]]:
    out = ", out of memory" if result.out_of_memory else ""
    name = {"name": f"{result.scheme}{out}"}
    yield {"ph": "M", "name": "process_name", "pid": process, "args": name}
    yield {"ph": "M", "name": "process_sort_index", "pid": process, "args": {"sort_index": process}}
    for machine in range(machines):
        of = f" of machine {machine}" if machines > 1 else ""
        for lane in LANES:
            yield {
                "ph": "M",
                "name": "thread_name",
                "pid": process,
                "tid": _thread(machine, lane),
                "args": {"name": f"{lane}{of}"},
            }


def _thread(machine: int, lane: str) -> int:
    return 1 + machine * len(LANES) + LANES.index(lane)
