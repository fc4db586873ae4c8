"""Journals of real and explored runs: where they lie, and what their replay comes to, in words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from castor_configs.errors import InputError
from castor_policy.agents.life import ROOT, WORKER
from castor_policy.journal.replay import JournalError, Parting, Replayed, replay
from castor_policy.journal.values import TAG, Json, encode
from castor_policy.version import __version__
from castor_records.run_files import RunFiles, journals_in

_WIDEST = 160


def found(paths: Sequence[Path]) -> list[Path]:
    """Return the journals that the paths stand for: files, agents' folders, run folders.

    Raises:
        InputError: there is none.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_file():
            files.append(path)
            continue
        run = RunFiles(path)
        here = journals_in(path) or [
            file for name in run.agent_names() for file in journals_in(run.agent(name))
        ]
        if not here:
            raise InputError(
                "holds no journal: give a journal-LIFE.jsonl, an agent's folder or a run folder",
                file=path,
            )
        files += here
    return files


def replayed(file: Path, until: int | None = None) -> Iterator[Replayed]:
    """Replay every life of a journal, in order; see `castor_policy.journal.replay`.

    Raises:
        InputError: naming file and line.
    """
    try:
        lines = file.read_bytes().decode("utf-8", errors="surrogateescape").split("\n")
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=file) from None
    if not any(line.strip() for line in lines):
        raise InputError("is empty: no life has taken anything in", file=file)
    try:
        yield from replay(lines, until)
    except JournalError as error:
        raise InputError(str(error), file=file, line=error.line) from None


def account(told: Replayed) -> list[str]:
    """Return what the replay of a life came to, in lines for people."""
    header = told.header
    begins = "goes on" if header.worker is not None else "begins"
    lines = [
        f"life {header.incarnation} of {header.agent}, job {header.spec.job}: "
        f"{begins} at line {told.first_line}",
        f"  worker: {_counts(told, WORKER)}{_range(', generation', told.generations)}",
    ]
    if told.terms:
        lines.append(f"  root:   {_counts(told, ROOT)}{_range(', term', told.terms)}")
    if header.castor != __version__:
        lines.append(f"  written by Castor {header.castor}; this is {__version__}")
    if told.is_torn:
        lines.append("  its last line was not written to its end: the agent was killed")
    if told.parting is None:
        return [*lines, f"  the same up to line {told.last_line}"]
    return [*lines, *_parting(told.parting)]


def document(file: Path, told: Replayed) -> dict[str, Json]:
    """Return what the replay of a life came to, as a JSON document."""
    header, parting = told.header, told.parting
    machines = {
        by: {"events": told.events[by], "ticks": told.ticks[by], "effects": told.effects[by]}
        for by in (WORKER, ROOT)
    }
    return {
        "file": str(file),
        "job": header.spec.job,
        "agent": header.agent,
        "incarnation": header.incarnation,
        "castor": header.castor,
        "begins": header.worker is None,
        "lines": [told.first_line, told.last_line],
        "torn": told.is_torn,
        **machines,
        "generations": told.generations,
        "terms": told.terms,
        "parting": None if parting is None else asdict(parting),
    }


def state(told: Replayed) -> Json:
    """Return the states of both machines as they are after the last line that was gone through."""
    life = told.life
    return {"worker": encode(life.worker), "root": None if life.root is None else encode(life.root)}


def _counts(told: Replayed, by: str) -> str:
    return f"{told.events[by]} events, {told.ticks[by]} ticks, {told.effects[by]} effects"


def _range(what: str, numbers: Sequence[int]) -> str:
    if not numbers:
        return ""
    first, last = numbers[0], numbers[-1]
    return f"{what} {first}" if first == last else f"{what}s {first} to {last}"


def _parting(parting: Parting) -> list[str]:
    took = "learns that its write failed" if parting.event is None else _short(parting.event)
    then, now = _flat(parting.then), _flat(parting.now)
    if sorted(then) == sorted(now):
        difference = ["    the same effects, in another order"]
    else:
        difference = [
            *(f"    then  {line}" for line in _without(then, now) or ["-"]),
            *(f"    now   {line}" for line in _without(now, then) or ["-"]),
        ]
    return [
        f"  parts at line {parting.line}: the {parting.by}, at {parting.now_s:.3f} s: {took}",
        *difference,
    ]


def _without(some: Sequence[tuple[str, str]], others: Sequence[tuple[str, str]]) -> list[str]:
    """Return what is not among the others; of what they do not have at all, what says something."""
    named = {name for name, _ in others}
    return [
        _cut(f"{name} = {value}" if value else name)
        for name, value in some
        if (name, value) not in others and (name in named or value not in _SAYS_NOTHING)
    ]


_SAYS_NOTHING = ('""', "[]", "{}", "null", "false")


def _flat(effects: Sequence[Json]) -> list[tuple[str, str]]:
    """Return effects a name and a value at a time, so that a difference is a few lines long."""
    return [line for effect in effects for line in _lines(effect, "")]


def _lines(tree: Json, name: str) -> Iterator[tuple[str, str]]:
    if not isinstance(tree, dict):
        yield (name, json.dumps(tree)) if name else (str(tree), "")
        return
    tag = str(tree.get(TAG, "")).rpartition(".")[2]
    here = ".".join(part for part in (name, tag) if part)
    rest = {key: one for key, one in tree.items() if key != TAG}
    if not rest:
        yield here, "" if tag else "{}"
    for key, one in rest.items():
        yield from _lines(one, f"{here}.{key}")


def _short(tree: Json) -> str:
    tag = str(tree.get(TAG, "")).rpartition(".")[2]
    said = ", ".join(f"{key}={json.dumps(one)}" for key, one in tree.items() if key != TAG)
    return _cut(f"{tag}({said})")


def _cut(text: str) -> str:
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."
