"""Which ranks of a job are slow now, or had a loss first that is no number; and that in words."""

from __future__ import annotations

from collections.abc import Iterable

from castor_configs.readable import format_seconds
from castor_records.events.event import Entry, Event, of_kind
from castor_records.events.training import NotFinite, Slow


def slow_now(entries: Iterable[Entry[Event]], generation: int) -> list[Slow]:
    """Return who is named as slow in a generation, and is so still, by rank."""
    newest = {one.event.rank: one.event for one in of_kind(entries, Slow)}
    found = (newest[rank] for rank in sorted(newest))
    return [one for one in found if one.generation == generation and not one.over]


def not_finite(entries: Iterable[Entry[Event]], generation: int) -> list[NotFinite]:
    """Return whose loss was not finite first, the last time that this happened in a generation."""
    told = [e.event for e in of_kind(entries, NotFinite) if e.event.generation == generation]
    last = max((one.iteration for one in told), default=0)
    return sorted((one for one in told if one.iteration == last), key=lambda one: one.rank)


def slow_words(slow: Slow) -> str:
    """Return what a slow rank costs, or did, as a sentence."""
    who = f"rank {slow.rank} of machine {slow.machine}"
    if slow.over:
        lost = f"{format_seconds(slow.lost_s)} in {slow.iterations} iterations"
        return f"{who} is slow no more; it cost {lost}"
    takes = f"{format_seconds(slow.own_s)} of its own, the others {format_seconds(slow.others_s)}"
    return (
        f"{who} is slow: all wait {format_seconds(slow.costs_s)} of each iteration for it "
        f"({slow.share:.0%}); it takes {takes}"
    )


def not_finite_words(odd: NotFinite) -> str:
    """Return whose loss is not finite, as a sentence."""
    return (
        f"rank {odd.rank} of machine {odd.machine}: its loss in iteration {odd.iteration} is not "
        "finite, those of the others are"
    )
