"""castor explore: the agents' protocol under thousands of fault schedules, in simulation."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from castor_configs.errors import InputError

if TYPE_CHECKING:
    from castor_sim.explore.reached import Reached
    from castor_sim.explore.run import Explored, Found, Search

_STDERR = Console(stderr=True, highlight=False, soft_wrap=True)
_INTERRUPTED = 130
_CRASHED = 3
_UNSEEN = 12
_BATCH = 25  # schedules that a process is given at a time, of small jobs
_BATCH_MACHINES = 200  # of larger ones as many as have so many machines together
_SHOWN = 3
_LAST_NOTES = 25


def explore(
    seeds: Annotated[int, typer.Option(min=1, help="How many schedules of faults.")] = 1000,
    first_seed: Annotated[int, typer.Option(min=0, help="Seed of the first.")] = 0,
    machines: Annotated[int | None, typer.Option(min=1, help="Machines that train.")] = None,
    ranks_per_machine: Annotated[int | None, typer.Option(min=1, help="Trainers on each.")] = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="Copies of each shard, m.")] = None,
    standby: Annotated[int | None, typer.Option(min=0, help="Standby machines.")] = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="Iterations of the job.")] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(min=1, help="Iterations from one checkpoint to the next.")
    ] = None,
    domains: Annotated[
        int | None, typer.Option(min=0, help="Failure domains; 0: no machine tells its own.")
    ] = None,
    faults: Annotated[
        str, typer.Option(metavar="KINDS", help="all, or some kinds: crash,net,store,...")
    ] = "all",
    replay: Annotated[
        str | None,
        typer.Option(metavar="JSON|FILE", help="Run this schedule, with seed --first-seed."),
    ] = None,
    broken: Annotated[
        str, typer.Option(metavar="NAME", help="Break the protocol on purpose (docs/explore.md).")
    ] = "",
    *,
    memory: Annotated[
        str | None, typer.Option(metavar="MODE", help="fast or saving, as of castor train.")
    ] = None,
    redundancy: Annotated[
        str | None, typer.Option(metavar="HOW", help="wait or degraded, as of castor train.")
    ] = None,
    in_place: Annotated[
        bool | None,
        typer.Option("--in-place/--restart", help="What the script's trainers do."),
    ] = None,
    coverage: Annotated[
        bool, typer.Option("--coverage", help="Say what was not reached; several times slower.")
    ] = False,
    journal: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write what every agent took in to DIR/seed-N."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Processes at a time; 0: one per core.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON document.")] = False,
) -> None:
    """Look for fault schedules that break the agents' invariants.

    The runtime's own worker and root run in a simulated cluster. Exit code 1
    and a shrunk schedule with its replay command if an invariant breaks; 3 if
    the explorer itself fails. The job's size is drawn by each seed; an option
    that gives one of these leaves the others at 4 machines of 1 rank, 2
    replicas, 1 standby and 12 iterations, a checkpoint of each in fast memory.

    Example: castor explore --seeds 10000 --jobs 2
    """
    from castor_sim.explore.broken import BROKEN
    from castor_sim.explore.run import Search
    from castor_sim.explore.world import Shape

    if broken and broken not in BROKEN:
        raise InputError(f"--broken takes one of {', '.join(BROKEN)}, not {broken!r}")
    sizes = {
        "machines": machines,
        "ranks_per_machine": ranks_per_machine,
        "replicas": replicas,
        "standby": standby,
        "iterations": iterations,
        "checkpoint_every": checkpoint_every,
        "domains": domains,
        "memory": memory,
        "redundancy": redundancy,
        "in_place": in_place,
    }
    given: dict[str, Any] = {name: size for name, size in sizes.items() if size is not None}
    try:
        shape = Shape(**given) if given else None
    except ValueError as error:
        raise InputError(str(error)) from error
    search = Search(shape, _kinds(faults), broken, coverage, _new(journal))
    if replay is not None:
        inline = replay.lstrip().startswith("[")
        text = replay if inline else Path(replay).read_text(encoding="utf-8")
        _replay(search, first_seed, text, as_json=as_json)
        return
    wanted = range(first_seed, first_seed + seeds)
    try:
        explored = _search(search, wanted, jobs or os.cpu_count() or 1)
    except KeyboardInterrupt:
        _STDERR.print("interrupted", markup=False)
        raise typer.Exit(_INTERRUPTED) from None
    _report(search, explored, wanted, as_json=as_json)


def _new(folder: Path | None) -> str:
    """Return the name of a folder for journals, which must not hold any yet."""
    if folder is None:
        return ""
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
        raise InputError(f"{folder} is there already: name a new folder", key="--journal")
    return str(folder)


def _kinds(text: str) -> tuple[str, ...]:
    from castor_sim.explore.schedule import KINDS

    if text == "all":
        return tuple(KINDS)
    kinds = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        known = "\n".join(f"  {kind:8s} {what}" for kind, what in KINDS.items())
        raise InputError(f"--faults does not know {', '.join(map(repr, unknown))}:\n{known}")
    return kinds


def _search(search: Search, seeds: range, jobs: int) -> Explored:
    from castor_analysis.workers import Workers
    from castor_sim.explore.run import Explored, run_seeds

    machines = search.shape.machines if search.shape is not None else 1
    batch = max(1, min(_BATCH, _BATCH_MACHINES // machines))
    batches = [seeds[begin : begin + batch] for begin in range(0, len(seeds), batch)]
    columns = (TextColumn("exploring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    explored = Explored()
    with (
        Progress(*columns, console=_STDERR, transient=True, disable=not _STDERR.is_terminal) as bar,
        Workers(min(jobs, len(batches))) as workers,
    ):
        task = bar.add_task("", total=len(seeds))
        for index, some in workers.map(partial(run_seeds, search), batches):
            explored.found += some.found
            explored.reached.add(some.reached)
            bar.advance(task, len(batches[index]))
    explored.found.sort(key=lambda violation: violation.seed)
    return explored


def _report(search: Search, explored: Explored, seeds: range, *, as_json: bool) -> None:
    from castor_sim.explore.run import notes_of, shrink

    found = explored.found
    coverage = _coverage(search, explored.reached) if search.coverage else {}

    if found:
        _STDERR.print(f"{len(found)} violations; shrinking {min(_SHOWN, len(found))}", markup=False)
    small = [shrink(search, violation) for violation in found[:_SHOWN]]
    if as_json:
        document = {
            "seeds": [seeds[0], seeds[-1]],
            "violations": len(found),
            "shown": [_document(search, violation) for violation in small],
        }
        typer.echo(json.dumps(document | coverage, indent=1))
    else:
        if coverage:
            _print_coverage(coverage)
        for violation in small:
            _print(search, violation, notes_of(search, violation)[-_LAST_NOTES:])
        typer.echo(f"{len(seeds)} schedules, {len(found)} violations")
    if found:
        raise _ended(found)


def _coverage(search: Search, reached: Reached) -> dict[str, Any]:
    from castor_sim.explore.reached import modules, unreached

    branches = {}
    for module in modules():
        count, left = unreached(module, reached.arcs)
        lines = [f"{branch.line} {branch.way}" for branch in left]
        branches[module.__name__] = {"branches": count, "not_reached": lines}
    unseen = reached.unseen_pairs(search.kinds)
    pairs = {"struck": len(reached.pairs), "not_struck": [" ".join(pair) for pair in unseen]}
    return {"coverage": branches, "pairs": pairs}


def _print_coverage(coverage: dict[str, Any]) -> None:
    for name, module in coverage["coverage"].items():
        left = module["not_reached"]
        typer.echo(f"{name}: {module['branches'] - len(left)} of {module['branches']} branches")
        for line in left:
            typer.echo(f"  line {line}")
    pairs = coverage["pairs"]
    unseen = pairs["not_struck"]
    typer.echo(
        f"pairs of faults, the second in GATHER or LOAD: {len(unseen)} never struck"
        f"{': ' + ', '.join(unseen[:_UNSEEN]) if unseen else ''}"
        f"{', ...' if len(unseen) > _UNSEEN else ''}"
    )


def _ended(found: list[Found]) -> typer.Exit:
    """Return how the command ends: a violation is 1, and a crash of the explorer alone is not."""
    from castor_sim.explore.run import CRASHED

    return typer.Exit(1 if any(one.invariant != CRASHED for one in found) else _CRASHED)


def _replay(search: Search, seed: int, text: str, *, as_json: bool) -> None:
    from castor_sim.explore.run import Found, notes_of, run_journaled, run_schedule
    from castor_sim.explore.schedule import faults_from_json

    faults = faults_from_json(text)
    run = run_journaled if search.journal else run_schedule
    violation = run(search, seed, faults)
    if as_json:
        shown = [] if violation is None else [_document(search, violation)]
        document = {"seeds": [seed, seed], "violations": len(shown), "shown": shown}
        typer.echo(json.dumps(document, indent=1))
    elif violation is None:
        typer.echo("\n".join(notes_of(search, Found(seed, 0, "", faults))))
        typer.echo("no violation")
    else:
        _print(search, violation, notes_of(search, violation))
    if violation is not None:
        raise _ended([violation])


def _print(search: Search, violation: Found, notes: list[str]) -> None:
    typer.echo(f"seed {violation.seed}: {violation.text}")
    for fault in violation.faults:
        typer.echo(f"  {fault.describe()}")
    typer.echo("what happened:")
    for note in notes:
        typer.echo(f"  {note}")
    typer.echo(f"replay: {replay_command(search, violation)}\n")


def _document(search: Search, violation: Found) -> dict[str, object]:
    return {
        "seed": violation.seed,
        "invariant": violation.invariant,
        "text": violation.text,
        "faults": [asdict(fault) for fault in violation.faults],
        "replay": replay_command(search, violation),
    }


def _flag(name: str, value: object) -> list[str]:
    if name == "in_place":
        return ["--in-place" if value else "--restart"]
    return [f"--{name.replace('_', '-')}", str(value)]


def replay_command(search: Search, violation: Found) -> str:
    """Return the command that runs a schedule again, quoted for a shell."""
    from castor_sim.explore.schedule import faults_to_json

    words = ["castor", "explore", "--first-seed", str(violation.seed)]
    for name, value in asdict(search.shape_of(violation.seed)).items():
        words += _flag(name, value)
    if search.broken:
        words += ["--broken", search.broken]
    return shlex.join([*words, "--replay", faults_to_json(violation.faults)])
