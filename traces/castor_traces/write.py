"""Write a trace in Castor's own format."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from castor_configs.atomic import replacing
from castor_traces.seconds import seconds_text_from_ns
from castor_traces.trace import Trace

COLUMNS = ("time_s", "machine", "kind", "duration_s", "domain", "cause")


def format_trace(trace: Trace) -> str:
    """Return the text of the trace's file: `# key: value` lines, the header, one row a failure.

    Exact: reading the text gives a trace equal to `trace`, and equal traces give equal text.
    Lines end in a line feed only. Format: traces/README.md.
    """
    head = [
        ("name", trace.name),
        ("machines", str(trace.machines)),
        ("span_s", seconds_text_from_ns(trace.span_ns)),
    ]
    head += [(k, v) for k, v in (("source", trace.source), ("licence", trace.licence)) if v]
    text = io.StringIO()
    for key, value in (*head, *trace.notes):
        text.write(f"# {key}: {value}".rstrip() + "\n")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for failure in trace.failures:
        rows.writerow(
            (
                seconds_text_from_ns(failure.time_ns),
                "" if failure.machine is None else failure.machine,
                failure.kind,
                "" if failure.duration_ns is None else seconds_text_from_ns(failure.duration_ns),
                failure.domain,
                failure.cause,
            )
        )
    return text.getvalue()


def write_trace(trace: Trace, path: str | Path) -> None:
    """Write the trace to `path`, whole or not at all, as UTF-8.

    Raises:
        ValueError: a text holds a lone surrogate, which UTF-8 cannot hold.
        OSError: the file cannot be written.
    """
    data = format_trace(trace).encode("utf-8")
    with replacing(path) as beside:
        beside.write_bytes(data)
