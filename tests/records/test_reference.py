"""docs/formats.md says of every event what its dataclass says, and of every phase."""

from __future__ import annotations

from pathlib import Path

import pytest

from castor_records.events.event import Event
from castor_records.events.fields import specs_of
from castor_records.events.line import KINDS
from castor_records.phases import Phase
from castor_records.reference import meanings_of, written_into

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
EVERY_KIND = [kind for _, kinds in KINDS for kind in kinds]


def test_the_page_is_as_the_dataclasses_are() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert written_into(page) == page, "run: python -m castor_records.reference docs/formats.md"


@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: kind.kind)
def test_every_field_says_what_it_is_and_measures_have_units(kind: type[Event]) -> None:
    specs = specs_of(kind)
    assert list(meanings_of(kind)) == [spec.name for spec in specs]
    units = {"_s": "s", "seconds": "s", "_ns": "ns", "_bps": "bit/s", "bytes": "bytes"}
    for spec in specs:
        unit = next((unit for end, unit in units.items() if spec.name.endswith(end)), None)
        assert unit is None or spec.words.endswith(f", {unit}"), spec


def test_every_kind_is_told_once() -> None:
    assert len(EVERY_KIND) == len({kind.kind for kind in EVERY_KIND}) == len(Event.kinds)


def test_the_page_names_every_phase_as_both_twins_do() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for phase in Phase:
        shared = phase not in (Phase.INTERRUPTED, Phase.PLANNING, Phase.FIRST_ITERATION)
        simulated = f"`{phase.simulated}`" if shared else ""
        measured = "" if phase == Phase.SERIALISATION else f"`{phase}`"
        row = f"| {measured} | {simulated} | ".replace("|  |", "| |")
        assert row in page, row


def test_a_page_without_its_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks the line"):
        written_into("# Formats\n")
