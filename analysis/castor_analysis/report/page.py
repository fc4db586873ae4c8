"""The report as one page that needs nothing else: what to read first stands first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from castor_analysis.page_style import html_page
from castor_analysis.recovery.moments import Moment
from castor_analysis.report import charts
from castor_analysis.report.storage_bill import Alternative, StorageBill, storage_write_s
from castor_analysis.report.story import Story
from castor_configs.readable import format_bps, format_bytes, format_seconds
from castor_records.phases import MEASURED
from castor_records.recoveries import Recovery

_NS_PER_S: Final = 1e9
_BUFFERS: Final = 2
"""Of each copy: the complete one, and the one in progress."""

_SINCE: Final[Mapping[str, str]] = {
    "failure": "the failure, whose moment is known",
    "last_iteration": "the end of the last iteration: when in the next one it failed is not known",
    "start": "the start of the attempt that failed",
    "detection": "its detection: when it failed is not known",
}


_UNKNOWN: Final = "what failed is not known"


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """What the report says of the run as a whole.

    Attributes:
        job: its name.
        outcome: as result.json has it; "running": it has not ended; "": not known.
        reason: why, where it did not finish.
        origin: a line for the end of the page: what it was made from, when and by what.
        notes: warnings, each a sentence.
    """

    job: str
    outcome: str
    reason: str
    origin: str
    notes: tuple[str, ...] = ()


def report_page(
    heading: Heading,
    story: Story,
    bill: StorageBill | str,
    told: Sequence[Sequence[Moment]] = (),
) -> str:
    """Return the page.

    Args:
        heading: of the run.
        story: its facts.
        bill: what storage had cost, or why that is not known.
        told: of each recovery what happened in it; empty: the log does not say.
    """
    body = [
        _head(heading, story),
        _tiles(story),
        _account(story),
        _recoveries(story, told),
        _iterations(story),
        _checkpoints(story),
        _bill(story, bill),
        _notes(heading, story),
        f'<p class="dim">{escape(heading.origin)}</p>\n',
    ]
    return html_page(f"Castor: {heading.job}", "".join(body), style=charts.STYLE)


# ---- what it came to ---------------------------------------------------------------------------


def _head(heading: Heading, story: Story) -> str:
    grade = {"finished": "good", "running": "fair", "interrupted": "fair", "": "fair"}
    said = {
        "finished": "It finished.",
        "failed": "It was given up.",
        "refused": "It was refused.",
        "interrupted": "It was interrupted.",
        "running": "It has not ended: this is how far it is.",
        "": "How it ended is not in these logs.",
    }.get(heading.outcome, heading.outcome)
    # Who interrupts a run has no other reason.
    untold = heading.reason and heading.reason != heading.outcome != "finished"
    reason = f" {heading.reason}" if untold else ""
    paced = (
        " Waits stand for a GPU's work in this run (paced compute): times are those of the model."
        if story.paced
        else ""
    )
    copies = f", each rank's state in the memory of {_count(story.replicas, 'machine')}"
    return (
        f"<h1>{escape(heading.job)}</h1>\n"
        f'<p><b class="{grade.get(heading.outcome, "bad")}">{escape(said)}</b>'
        f"{escape(reason)}</p>\n"
        f'<p class="dim">{_count(story.machines, "machine")}, {_count(story.ranks, "rank")}'
        f"{copies if story.replicas else ''}.{paced}</p>\n"
    )


def _tiles(story: Story) -> str:
    account = story.account
    lost = sum(one.iterations_lost or 0 for one in story.recoveries)
    slowest = max((one.seconds.get("total") or 0.0 for one in story.recoveries), default=0.0)
    tiles = [
        (
            "not begun" if account.ratio is None else f"{100 * account.ratio:.1f} %",
            "effective training time: share of the time since training began that went into "
            "new iterations",
        ),
        (
            str(story.reached),
            f"iterations in {format_seconds(account.wall_s)} since training began",
        ),
        (
            str(len(story.recoveries)),
            ("recovery" if len(story.recoveries) == 1 else "recoveries")
            + (f"; the longest took {format_seconds(slowest)}" if slowest else ""),
        ),
        (str(lost), "iterations were run again after failures"),
    ]
    shown = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
        for value, label in tiles
    )
    return f'<div class="tiles">{shown}</div>\n'


def _account(story: Story) -> str:
    one = story.account
    if one.ratio is None:
        return "<h2>Where the time went</h2>\n<p>Training never began.</p>\n"
    rows = [
        ("new iterations", one.new_s, "var(--new)", "iterations that count"),
        ("checkpoint stall", one.stall_s, "var(--stall)", "in them, waiting for checkpoints"),
        ("lost machines", one.hardware_s, "var(--hardware)", "until training went on"),
        ("failed processes", one.software_s, "var(--software)", "until training went on"),
        ("cut off", one.cut_off_s, "var(--cut)", "of the iteration in flight at a failure"),
        ("run again", one.redone_s, "var(--redone)", "iterations that had ended before"),
        ("other", one.other_s, "var(--rest)", "between what the log tells of"),
    ]
    table = "".join(
        f'<tr><td>{charts.key(colour, name)}</td><td class="n">{format_seconds(seconds)}</td>'
        f'<td class="n">{100 * seconds / one.wall_s:.2f} %</td><td class="dim">{escape(what)}</td>'
        "</tr>"
        for name, seconds, colour, what in rows
    )
    bar = charts.stack([(name, seconds, colour) for name, seconds, colour, _ in rows])
    return (
        "<h2>Where the time went</h2>\n"
        f"<p>From the moment training began, {format_seconds(one.wall_s)}, as the agents' "
        "clocks have it.</p>\n"
        f'<div class="card">{bar}<table class="wrap" style="margin-top:10px">'
        f'<tr><th></th><th class="n">time</th><th class="n">share</th><th></th></tr>{table}'
        "</table></div>\n"
    )


# ---- what failed -------------------------------------------------------------------------------


def _recoveries(story: Story, told: Sequence[Sequence[Moment]]) -> str:
    head = "<h2>What failed, and how it was recovered</h2>\n"
    if not story.recoveries:
        return head + "<p>Nothing failed in this run.</p>\n"
    longest_s = max(
        sum(v or 0.0 for k, v in one.seconds.items() if k != "total") for one in story.recoveries
    )
    keys = " &ensp; ".join(
        charts.key(charts.PHASE_COLOURS[phase], phase.replace("_", " "))
        for phase in map(str, MEASURED)
        if any(one.seconds.get(phase) for one in story.recoveries)
    )
    cards = "".join(
        _recovery(number, one, story, longest_s, told[number - 1] if told else ())
        for number, one in enumerate(story.recoveries, start=1)
    )
    return (
        f"{head}<p>Bars have one scale: the longest is "
        f"{format_seconds(longest_s)}.</p>\n<p>{keys}</p>\n{cards}"
    )


def _recovery(
    number: int, one: Recovery, story: Story, longest_s: float, told: Sequence[Moment]
) -> str:
    total = one.seconds.get("total")
    at_s = (one.start_ns - (story.begun_ns or 0)) / _NS_PER_S
    since = "the job was made" if story.begun_ns is None else "training began"
    took = "it did not end" if total is None else f"took {format_seconds(total)}"
    what = "machine lost" if one.kind == "hardware" else "process failed"
    sources = Counter(source.partition(":")[0] for source in one.sources.values())
    where = ", ".join(
        f"{_count(count, 'rank')} from {_TIERS.get(tier, tier)}" for tier, count in sources.items()
    )
    resumed = (
        "nothing was resumed"
        if one.iteration is None
        else f"resumed from iteration {one.iteration}: {where}; "
        + (_count(one.iterations_lost or 0, "iteration") + " run again")
    )
    phases = " ".join(
        f'<td class="n">{format_seconds(one.seconds.get(phase) or 0.0)}</td>'
        for phase in map(str, MEASURED)
        if one.seconds.get(phase) is not None
    )
    names = " ".join(
        f'<th class="n">{phase.replace("_", " ")}</th>'
        for phase in map(str, MEASURED)
        if one.seconds.get(phase) is not None
    )
    moments = "".join(
        f'<tr><td class="n">{moment.since_s:.3f} s</td><td>{escape(moment.who)}</td>'
        f"<td>{escape(moment.what)}</td></tr>"
        for moment in told
    )
    details = (
        f'<details><summary>Second by second</summary><table class="wrap">{moments}</table>'
        "</details>"
        if moments
        else ""
    )
    return (
        f'<div class="card"><b>{number}. {what}, {took}</b> '
        f'<span class="dim">{format_seconds(max(0.0, at_s))} after {since}</span>\n'
        f"<p>{escape(_cause(one))}</p>\n"
        f"{charts.recovery_bar(one, longest_s)}"
        f"<p>{escape(resumed)}.</p>"
        f'<table style="width:auto"><tr>{names}</tr><tr>{phases}</tr></table>'
        f'<p class="dim">Counted from {escape(_SINCE.get(one.since, one.since))}.</p>{details}'
        "</div>\n"
    )


_TIERS: Final[Mapping[str, str]] = {
    "own_memory": "its own machine's memory",
    "peer": "a peer's memory",
    "storage": "persistent storage",
    "scratch": "the very start",
}


# ---- iterations and checkpoints ----------------------------------------------------------------


def _iterations(story: Story) -> str:
    if not story.iterations:
        return "<h2>Iterations</h2>\n<p>No iteration ended.</p>\n"
    usual_s = story.iteration_s
    usual = "" if usual_s is None else f" An ordinary one takes {format_seconds(usual_s)} (median)."
    return (
        "<h2>Iterations</h2>\n"
        f"<p>Each iteration.{usual} Shaded: training stood, numbered as above.</p>\n"
        f"<p>{charts.key('var(--new)', 'iteration')} &ensp; "
        f"{charts.key('var(--redone)', 'run again')} &ensp; "
        f"{charts.key('var(--stall)', 'of it, waiting for a checkpoint')}</p>\n"
        f'<div class="card">{charts.iteration_chart(story)}</div>\n'
    )


def _checkpoints(story: Story) -> str:
    found = story.checkpoints
    if not found.complete:
        return "<h2>Checkpoints</h2>\n<p>No checkpoint was completed.</p>\n"
    took = sorted(found.seconds)
    stall = story.account.stall_s / max(1e-9, story.account.new_s + story.account.stall_s)
    size = story.checkpoint_bytes
    rows = [
        ("complete in memory on every rank", str(found.complete)),
        ("left out, as state changed while it was copied", str(found.left_out)),
        (
            "from the iteration's end until complete, median",
            format_seconds(took[len(took) // 2]) if took else "not told",
        ),
        ("training waited for them", f"{100 * stall:.2f} % of its time"),
        ("sent to other machines' memory in all", format_bytes(found.sent_bytes)),
        ("state of all ranks, one checkpoint", _or(size, format_bytes)),
    ]
    if size is not None and story.machines:
        each = size * story.replicas * _BUFFERS / story.machines
        what = "memory for it on each machine: two buffers a copy (one less with --memory saving)"
        rows.append((what, format_bytes(each)))
    rows.append(("speed of the link, the slowest rank's", _or(found.bandwidth_bps, format_bps)))
    if found.persisted or found.persist_failed:
        rows.append(("persistent checkpoints that every machine wrote", str(found.persisted)))
        if found.persist_s:
            slowest = format_seconds(sorted(found.persist_s)[len(found.persist_s) // 2])
            rows.append(("writing one beside training, median", slowest))
    rows += [("a share was not written", cause) for cause in found.persist_failed]
    table = "".join(f"<tr><td>{escape(n)}</td><td>{escape(v)}</td></tr>" for n, v in rows)
    return f'<h2>Checkpoints</h2>\n<div class="card"><table class="wrap">{table}</table></div>\n'


# ---- storage -----------------------------------------------------------------------------------


def _bill(story: Story, bill: StorageBill | str) -> str:
    head = "<h2>With checkpoints to storage instead</h2>\n"
    if isinstance(bill, str):
        return f"{head}<p>Not reckoned: {escape(bill)}.</p>\n"
    account = story.account
    rate = format_bps(bill.storage_bps)
    rows = [
        f'<tr><td><b>Castor, measured</b></td><td class="n">{format_seconds(account.wall_s)}</td>'
        f'<td class="n">{_percent(account.ratio)}</td>'
        f'<td class="n">{format_seconds(account.redone_s + account.cut_off_s)}</td>'
        f'<td class="n">{format_seconds(account.stall_s)}</td><td class="n"></td></tr>'
    ]
    if bill.twin is not None:
        rows.append(_alternative("Castor, as the simulator has it", bill.twin))
    rows += [_alternative(_named(one), one) for one in bill.alternatives]
    best = min(bill.alternatives, key=lambda one: one.wall_s)
    more_s = best.wall_s - account.wall_s
    verdict = (
        f"The best of them would have taken {format_seconds(more_s)} longer for the same "
        f"{story.reached} iterations."
        if more_s > 0
        else "The best of them would have been no slower in this run: it takes "
        f"{format_seconds(-more_s)} less."
    )
    return (
        f"{head}<p>The simulator's word, calibrated on this run: its iterations of "
        f"{format_seconds(bill.iteration_s)}, its state of {format_bytes(bill.checkpoint_bytes)}, "
        "and its own failures, at the same moments of its clock; each takes as long as it took, "
        "but reads the whole state from storage. "
        f"Storage gives all machines together {rate} ({bill.rate_from}), so that one checkpoint "
        f"takes {format_seconds(storage_write_s(bill))}.</p>\n<p><b>{escape(verdict)}</b></p>\n"
        '<div class="card"><table class="wrap"><tr><th>checkpoints</th>'
        f'<th class="n">time for {story.reached} iterations</th>'
        '<th class="n">effective training time</th><th class="n">thrown away by failures</th>'
        '<th class="n">stalled</th><th class="n">one retrieval</th></tr>'
        f"{''.join(rows)}</table></div>\n"
    )


def _cause(one: Recovery) -> str:
    """Return what failed; that it was not known at first says nothing once it is."""
    known = [text for text in one.cause.split("; ") if text and text != _UNKNOWN]
    return "; ".join(known) or _UNKNOWN


def _named(one: Alternative) -> str:
    if not one.every:
        return f"storage {one.name}: none was due"
    return f"storage {one.name}: every {_count(one.every, 'iteration')}"


def _alternative(name: str, one: Alternative) -> str:
    read = format_seconds(one.read_s) if one.read_s else ""
    return (
        f'<tr><td>{escape(name)}</td><td class="n">{format_seconds(one.wall_s)}</td>'
        f'<td class="n">{_percent(one.ratio)}</td><td class="n">{format_seconds(one.redone_s)}</td>'
        f'<td class="n">{format_seconds(one.stall_s)}</td><td class="n">{read}</td></tr>'
    )


# ---- the rest ----------------------------------------------------------------------------------


def _notes(heading: Heading, story: Story) -> str:
    notes = dict.fromkeys((*heading.notes, *story.warnings))
    if not notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<h2>Warnings</h2>\n<ul>{items}</ul>\n"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _or(value: float | None, shown: Callable[[float], str]) -> str:
    return "not told" if value is None else shown(value)
