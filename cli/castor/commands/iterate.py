"""castor iterate: one training iteration with its checkpoint traffic, scheme by scheme."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from castor.commands.overwriting import Overwrite
from castor_configs.plugins import and_plugins

if TYPE_CHECKING:
    from castor_sim.iteration.case import IterationSetup
    from castor_sim.iteration.measured import MeasuredProfile
    from castor_sim.iteration.run import IterationReport

STDERR = Console(stderr=True, highlight=False)


def iterate(
    experiment: Annotated[
        str,
        typer.Argument(metavar="EXPERIMENT.toml", help="An experiment, by path or shipped name."),
    ],
    scheme: Annotated[
        list[str] | None,
        typer.Option(
            "--scheme",
            metavar="NAME",
            help="May be repeated; all by default: none, blocking, naive, unpipelined, pipelined"
            f"{and_plugins('schemes')}.",
        ),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            "--profile", metavar="P", help="Take the timeline from a measured profile (TOML)."
        ),
    ] = None,
    link: Annotated[
        str | None,
        typer.Option(
            "--link",
            metavar="RATE",
            help="With --profile: as if a machine's link had this nominal rate.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    timeline: Annotated[
        Path | None,
        typer.Option(
            "--timeline",
            metavar="F",
            help="Write the timelines: F.json opens in Perfetto; F.png or F.pdf is a picture.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. iteration.mu=0.9."),
    ] = None,
) -> None:
    """Simulate one iteration: where the network is idle, and what checkpoints cost in it.

    Example: castor iterate gpt2-40b-p3dn --timeline out/iteration.json
    """
    from castor_configs.errors import InputError
    from castor_configs.schemes import SCHEMES
    from castor_policy.interleaving import NONE
    from castor_sim.iteration.case import load_iteration
    from castor_sim.iteration.run import scheme_names, simulate_iteration

    wanted = scheme or list(scheme_names())
    for name in wanted:
        if name != NONE:
            SCHEMES.choose(name, "--scheme", (NONE,))
    if timeline is not None:
        _check_timeline(timeline, overwrite=overwrite)
    measured = _profile(profile, link)
    setup = load_iteration(experiment, tuple(overrides or ()), measured)
    try:
        report = simulate_iteration(setup.case, wanted)
    except ValueError as error:
        raise InputError(str(error), file=experiment, key="iteration") from error
    document = iteration_document(setup, report)
    if timeline is not None:
        _write_timeline(report, timeline)
    if as_json:
        typer.echo(json.dumps(document, indent=2, allow_nan=False))
    else:
        _print(document)
        _say_trust(setup, measured=measured is not None)


def _profile(profile: Path | None, link: str | None) -> MeasuredProfile | None:
    from castor_configs.errors import InputError
    from castor_configs.quantities import parse_bps
    from castor_sim.iteration.measured import load_profile

    if profile is None:
        if link is not None:
            raise InputError("needs a measured timeline: give --profile", key="--link")
        return None
    measured = load_profile(profile)
    if link is None:
        return measured
    try:
        return measured.at_link(parse_bps(link))
    except ValueError as error:
        raise InputError(str(error), file=profile, key="--link") from error


def _say_trust(setup: IterationSetup, *, measured: bool) -> None:
    """Say on stderr what the timeline rests on."""
    from castor_configs.readable import format_seconds

    if measured:
        return
    cluster, model = setup.cluster, setup.model
    if not cluster.calibration.source:
        STDERR.print(
            f"cluster {cluster.name} has no [calibration]: efficiencies are round numbers",
            style="dim",
            markup=False,
        )
    known_ns = model.iteration_time.get(cluster.name)
    if known_ns is not None:
        STDERR.print(
            f"{model.name} on {cluster.name} takes {format_seconds(known_ns / 1e9)} by its own "
            "configuration",
            style="dim",
        )


def iteration_document(setup: IterationSetup, report: IterationReport) -> dict[str, Any]:
    """Return what `--json` prints: times in seconds, sizes in bytes of one GPU."""
    case, traffic = report.case, report.case.traffic
    spans = min(report.spans, key=lambda of_machine: sum(span.idle_ns for span in of_machine))
    return {
        "name": setup.experiment.name,
        "case": case.name,
        "seed": case.seed,
        "jitter": case.jitter,
        "checkpoint": {
            "shard_bytes": traffic.shard_bytes,
            "replicas": traffic.remote_copies + 1,
            "buffer_bytes": traffic.buffer_bytes,
            "sub_buffers": traffic.sub_buffers,
            "mu": float(traffic.mu),
            "alpha_s": traffic.link.alpha_ns / 1e9,
            "bandwidth_bps": traffic.link.bandwidth_bps,
            # null: received chunks arrive in CPU memory, and there is no such hop.
            "copy_bandwidth_bps": traffic.copy_link and traffic.copy_link.bandwidth_bps,
            "free_gpu_memory_bytes": traffic.free_bytes,
        },
        "calibration": setup.cluster.calibration.model_dump(),
        "idle": {
            "spans": len(spans),
            "total_s": sum(span.idle_ns for span in spans) / 1e9,
            "largest_s": max(span.idle_ns for span in spans) / 1e9,
            "spans_s": [span.idle_ns / 1e9 for span in spans],
        },
        "schemes": {name: _scheme_json(setup, report, name) for name in report.results},
    }


def _scheme_json(setup: IterationSetup, report: IterationReport, name: str) -> dict[str, Any]:
    from castor_policy.frequency_fit import least_wasteful_frequency

    result = report.results[name]
    fits = not result.out_of_memory
    found: dict[str, Any] = {
        "out_of_memory": result.out_of_memory,
        # What does not fit the memory does not run: there is no time to give.
        "iteration_s": result.iteration_ns / 1e9 if fits else None,
        "overhead": report.overhead(name) if fits else None,
        "network_idle_before_s": report.baseline.idle_ns / 1e9,
        "network_idle_s": result.idle_ns / 1e9 if fits else None,
        "checkpoint_s": result.checkpoint_ns / 1e9,
        "checkpoint_complete_s": result.complete_ns / 1e9,
        "sent_bytes": result.sent_bytes,
        "peak_buffer_bytes": result.peak_buffer_bytes,
        "chunks": max((len(schedule.chunks) for schedule in result.schedules), default=0),
        "update_delay_s": max((s.update_delay_ns for s in result.schedules), default=0) / 1e9,
        "checkpoint_every": None,
    }
    delay_s = max(0, result.iteration_ns - report.baseline.iteration_ns) / 1e9
    if fits and result.schedules and setup.failures_per_s is not None:
        # The delay is what counts, whatever its reason.
        chosen = least_wasteful_frequency(
            iteration_s=report.baseline.iteration_ns / 1e9,
            traffic_s=delay_s,
            idle_s=0.0,
            failure_rate_per_s=setup.failures_per_s,
            retrieval_s=setup.retrieval_s,
        )
        found["checkpoint_every"] = chosen.every
    return found


def _check_timeline(path: Path, *, overwrite: bool) -> None:
    """Find out before the work whether the timeline's files can be written, both of a picture."""
    from castor_configs.atomic import output_file, output_folder
    from castor_configs.errors import InputError

    if path.suffix not in (".json", ".png", ".pdf"):
        raise InputError("expected a file named .json, .png or .pdf", key="--timeline")
    for suffix in (".json",) if path.suffix == ".json" else (".png", ".pdf"):
        output_file(path.with_suffix(suffix), key="--timeline", overwrite=overwrite)
    output_folder(path.parent)


def _write_timeline(report: IterationReport, path: Path) -> None:
    from castor_analysis.pictures.iteration_trace import iteration_chrome_trace
    from castor_configs.atomic import write_text

    if path.suffix == ".json":
        write_text(path, json.dumps(iteration_chrome_trace(report)) + "\n")
        STDERR.print(f"{path}: open it at ui.perfetto.dev", style="dim")
        return
    from castor_analysis.pictures.iteration import draw_iteration

    png, pdf = draw_iteration(report, path.with_suffix(""))
    STDERR.print(f"{png} and {pdf}", style="dim")


def _print(document: Mapping[str, Any]) -> None:
    from castor_configs.readable import format_bytes, format_seconds

    idle, checkpoint = document["idle"], document["checkpoint"]
    table = Table(
        title=f"{document['name']}: {document['case']}",
        caption=f"{idle['spans']} idle span{'s' if idle['spans'] > 1 else ''} of "
        f"{format_seconds(idle['total_s'])} in all, the "
        f"largest {format_seconds(idle['largest_s'])}; {checkpoint['replicas'] - 1} remote "
        f"cop{'y' if checkpoint['replicas'] == 2 else 'ies'} of "
        f"{format_bytes(checkpoint['shard_bytes'])} a GPU. traffic: time of its chunks on the "
        "network; buffer: GPU memory that they take; every: iterations between checkpoints that "
        "waste the least time",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,  # seven wide columns fit 80
        pad_edge=False,
    )
    table.add_column("scheme", no_wrap=True)
    for heading in ("iteration", "cost", "idle left", "traffic", "buffer", "every"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in document["schemes"].items():
        if row["out_of_memory"]:
            needs = format_bytes(row["peak_buffer_bytes"])
            table.add_row(name, "out of memory", "", "", "", needs, "")
            continue
        sends = name != "none"
        every = row["checkpoint_every"]
        table.add_row(
            name,
            format_seconds(row["iteration_s"]),
            f"{row['overhead']:+z.2%}" if sends else "",
            format_seconds(row["network_idle_s"]),
            format_seconds(row["checkpoint_s"]) if sends else "",
            format_bytes(row["peak_buffer_bytes"]) if sends else "",
            str(every) if every else "",
        )
    Console(highlight=False).print(table)
