"""A job's status for a person: whole where it fits, else the sick first and the rest counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from castor_configs.readable import format_bytes, format_seconds
from castor_records.events.training import NotFinite, Slow
from castor_runtime.launcher.odd_ranks import not_finite_words, slow_words

_LINE_LENGTH: Final = 200
_CAUSES_SHOWN: Final = 8
"""Lines under the table, where there is no room for all."""

_ALIKE_SHOWN: Final = 5
_ROWS_LEAST: Final = 3

_SICKNESS: Final = {"lost": 0, "dead": 0, "failed": 1, "set aside": 2, "gathered": 3, "loading": 3}
"""What comes first; of one kind, the lowest machine."""
_LACKS_REPLICAS: Final = 4
_WELL: Final = 9
_WELL_STATES: Final = ("running", "finished", "standby")


class Pace:
    """How fast a job goes, between two looks at it."""

    def __init__(self) -> None:
        self._seen: tuple[float, int, int] | None = None
        self._iteration_s: float | None = None

    def look(self, document: Mapping[str, Any], now_s: float) -> str:
        """Return how long an iteration takes now, in words; "" while that is not known.

        Args:
            document: the status.
            now_s: any steady clock.
        """
        generation, iteration = document["generation"], document["iteration"]
        before = self._seen
        if before is None or before[1] != generation or iteration < before[2]:
            self._seen, self._iteration_s = (now_s, generation, iteration), None
        elif iteration > before[2]:
            took_s = (now_s - before[0]) / (iteration - before[2])
            # Looks and reports are not in step with iterations: a mean over the last few.
            known_s = took_s if self._iteration_s is None else self._iteration_s
            self._iteration_s = 0.7 * known_s + 0.3 * took_s
            self._seen = (now_s, generation, iteration)
        if self._iteration_s is None:
            return ""
        return f"{format_seconds(self._iteration_s)} an iteration"


def status_view(document: Mapping[str, Any]) -> Group:
    """Show all of a status, as `status_document` returns it."""
    causes = [Text(line, style="yellow") for line in why(document)]
    shown = [*document["machines"], *document["standbys"]]
    return Group(_head(document, ""), _table(document, shown), *causes)


def screenful(document: Mapping[str, Any], size: tuple[int, int], pace: str = "") -> Group:
    """Show of a status what fits, the sick first.

    Args:
        document: as `status_document` returns it.
        size: columns and lines that there are.
        pace: how fast it goes, in words.
    """
    columns, lines = size
    head = _head(document, pace)
    causes = [Text(line, style="yellow") for line in why(document)]
    shown = [*document["machines"], *document["standbys"]]
    if len(causes) > _CAUSES_SHOWN:
        more = Text(f"and {len(causes) - _CAUSES_SHOWN} lines more", style="yellow")
        causes = [*causes[:_CAUSES_SHOWN], more]
    taken = sum(_height(text.plain, columns) for text in (head, *causes))
    room = max(_ROWS_LEAST, lines - taken - 1)
    ordered = sorted(shown, key=_sickness)
    if len(shown) <= room:
        return Group(head, _short_table(document, ordered), *causes)
    sick = [one for one in ordered if _sickness(one)[0] != _WELL]
    # The count below takes up to three lines.
    sick = sick[: max(_ROWS_LEAST, room - 3)]
    return Group(
        head,
        *([_short_table(document, sick)] if sick else []),
        _counted(shown, len(sick)),
        *causes,
    )


def _head(document: Mapping[str, Any], pace: str) -> Text:
    redundancy = "DEGRADED: replicas are missing" if document["degraded"] else "all replicas whole"
    persistent = document["persistent"]
    head = Text(
        f"job {document['job']}: {document['phase']}, generation {document['generation']}, "
        f"iteration {document['iteration']}, complete in memory {document['complete_iteration']}, "
        f"in storage {persistent[-1] if persistent else 'none'}{pace and f'; {pace}'}\n"
        f"root {document['root'] or 'none'}, term {document['term']}; {redundancy}; "
        f"{len(document['recoveries'])} recoveries so far"
        + "".join(f"\n{trouble}" for trouble in document["store"]["troubles"]),
        style="yellow" if document["degraded"] else "",
    )
    unreached = [f"{a} cannot be asked: {r}" for a, r in document["unreached"].items()]
    unwritten = [f"NOT PERSISTED by {a}: {c}" for a, c in document["persist_failures"].items()]
    for line in (*_first(unreached), *_first(unwritten)):
        head.append(f"\n{line}", style="yellow")
    if document["kept_memory"]:
        reason = document["reason"]
        head.append(f"\ngave up: {reason}; memory is kept: {document['kept_memory']}", style="red")
    return head


def _table(document: Mapping[str, Any], shown: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    # Where no agent said what its machine fails with there is nothing to show.
    domains = any(one["domain"] for one in shown)
    for heading in ("machine", "agent", *(["domain"] if domains else []), "lease", "state"):
        table.add_column(heading)
    for heading in ("iteration", "memory", "holds shard: iteration"):
        table.add_column(heading, justify="right")
    held = _held(document, {one["machine"] for one in shown})
    for one in shown:
        machine, memory = one["machine"], one["memory_bytes"]
        table.add_row(
            "-" if machine is None else str(machine),
            one["agent"] or "-",
            *([one["domain"] or "-"] if domains else []),
            one["lease"],
            _state(one),
            str(one["iteration"]),
            "-" if memory is None else format_bytes(memory),
            ", ".join(held.get(machine, ())),
        )
    return table


def _short_table(document: Mapping[str, Any], shown: Sequence[Mapping[str, Any]]) -> Table:
    """Return a line for each: what a narrow screen has room for."""
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    domains = any(one["domain"] for one in shown)
    for heading in ("machine", "agent", *(["domain"] if domains else []), "state"):
        table.add_column(heading, no_wrap=True)
    for heading in ("iteration", "memory", "whole here"):
        table.add_column(heading, justify="right", no_wrap=True)
    whole = _newest_whole(document)
    for one in shown:
        machine, memory = one["machine"], one["memory_bytes"]
        lacks = one["state"] == "running" and not one["redundant"]
        sick = _sickness(one)[0] != _WELL
        table.add_row(
            "-" if machine is None else str(machine),
            one["agent"] or "-",
            *([one["domain"] or "-"] if domains else []),
            _state(one) + (" !" if lacks else ""),
            str(one["iteration"]),
            "-" if memory is None else format_bytes(memory),
            str(whole.get(machine, "-")),
            style="yellow" if sick else "",
        )
    return table


def _newest_whole(document: Mapping[str, Any]) -> dict[int, int]:
    """Return for each machine the newest iteration that it holds of every shard it should."""
    found: dict[int, int] = {}
    for shard in document["shards"]:
        for holder, iteration in shard["holders"].items():
            machine = int(holder)
            found[machine] = min(found.get(machine, iteration), iteration)
    return found


def _height(text: str, columns: int) -> int:
    """Return how many lines a text takes at most, broken between words."""
    return sum(1 + len(line) // max(1, columns - 12) for line in text.split("\n"))


def _held(
    document: Mapping[str, Any], machines: Iterable[int | None]
) -> dict[int | None, list[str]]:
    """Return for each machine the shards that it holds, and the newest iteration of each."""
    found: dict[int | None, list[str]] = {machine: [] for machine in machines}
    for shard in document["shards"]:
        for holder, iteration in shard["holders"].items():
            if int(holder) in found:
                found[int(holder)].append(f"{shard['shard']}: {iteration}")
    return found


def _counted(shown: Sequence[Mapping[str, Any]], listed: int) -> Text:
    """Say how many machines and standbys there are of each kind, the rare kinds first."""
    kinds = Counter(_kind(one) for one in shown)
    words = ", ".join(
        f"{number} {kind}" for kind, number in sorted(kinds.items(), key=lambda one: one[1])
    )
    rest = "none of them needs a look" if not listed else f"the {listed} that need a look are above"
    sick = sum(_sickness(one)[0] != _WELL for one in shown)
    if sick > listed:
        rest = f"the first {listed} of {sick} that need a look are above"
    return Text(f"{len(shown)} agents and empty places: {words}; {rest}")


def _kind(one: Mapping[str, Any]) -> str:
    lacks = one["machine"] is not None and one["state"] == "running" and not one["redundant"]
    return _state(one) + (", replicas missing" if lacks else "")


def _sickness(one: Mapping[str, Any]) -> tuple[int, int]:
    """Return what sorts the sick before the well."""
    machine = one["machine"]
    state = _state(one)
    sickness = _SICKNESS.get(state, _WELL if state in _WELL_STATES else _LACKS_REPLICAS)
    if state == "running" and not one["redundant"]:
        sickness = _LACKS_REPLICAS
    return sickness, -1 if machine is None else machine


def _state(one: Mapping[str, Any]) -> str:
    if one.get("set_aside"):
        return "set aside"
    return "standby" if one["machine"] is None and one["state"] == "idle" else str(one["state"])


def _first(lines: list[str]) -> list[str]:
    """Return the first of many lines alike, and how many more there are."""
    if len(lines) <= _ALIKE_SHOWN:
        return lines
    more = len(lines) - _ALIKE_SHOWN + 1
    return [*lines[: _ALIKE_SHOWN - 1], f"... and {more} lines more like it"]


_WISHES = {
    "stop": "asked to stop",
    "checkpoint": "asked to stop at a checkpoint",
    "drain": "asked to drain {agent}",
}


def why(document: Mapping[str, Any]) -> list[str]:
    """Return who is slow, what failed of late, and which machines are set aside for it."""
    lines = [f"waits: {document['waits_for']}"] if document["waits_for"] else []
    lines += [
        f"{_WISHES[one['kind']].format(**one)}: {one['progress']}" for one in document["wishes"]
    ]
    lines += [
        f"a machine is asked for ({one['request']}): {one['progress']}"
        for one in document["machines_asked_for"]
    ]
    lines += _first(
        [
            f"two copies of shard {shard} are in one failure domain, {domain}"
            for shard, domain in document["copies_together"].items()
        ]
    )
    lines += _first([f"refused: {one['agent']}: {one['reason']}" for one in document["refused"]])
    lines += [slow_words(Slow.of_fields(one)) for one in document["slow"]]
    lines += [not_finite_words(NotFinite.of_fields(one)) for one in document["not_finite"]]
    last = document["last_failure"]
    if last is not None:
        named = "; ".join(f"machine {one['machine']}: {one['cause']}" for one in last["culprits"])
        lines.append(f"last failure: {named or 'what failed is not known'}")
        lines += [f"  seen beside it: {seen}" for seen in last["seen"]]
    if document["attempts"]:
        lines.append(f"{document['attempts']} attempts in a row completed no iteration")
    lines += [
        f"{one['agent']} is set aside until its agent is started again: {one['set_aside']}"
        for one in document["standbys"]
        if one["set_aside"]
    ]
    lines += [
        f"{agent} failed {found['times']} times in the last hour, at last: {found['last']}"
        for agent, found in sorted(document["failures"].items())
        if found["times"] > 1
    ]
    return [line[:_LINE_LENGTH] for line in lines]
