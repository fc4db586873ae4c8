"""Every event, every effect and all that they hold come out of a journal as they went in."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from enum import StrEnum
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.effects import RootEffect, WorkerEffect
from castor_policy.agents.events import AgentEvent, PlanChanged, RootEvent, TrainerEnded
from castor_policy.agents.evidence import SightKind
from castor_policy.agents.job_spec import JobSpec
from castor_policy.journal.values import MACHINES, VALUES, decode, encode, tag_of
from castor_policy.placement import Placement, place
from castor_records.events.event import Event
from castor_records.events.fields import Unit

SPEC = JobSpec("job", 2, 1, "group", ((0, 1), (1, 0)), "train.py")


def values_of(hint: Any, most: int = 2, least: int = 0) -> st.SearchStrategy[Any]:
    """Whatever a field of this type may hold; of several, `least` to `most`."""
    kind, of = get_origin(hint), get_args(hint)
    if kind is Annotated:
        is_measure = isinstance(of[1], Unit) and of[1].is_measure
        return st.floats(0.1, 1e12) if is_measure else values_of(of[0])
    if kind in (Union, UnionType):
        return st.one_of(*(values_of(one, most, least) for one in of))
    if kind in (tuple, Sequence):
        some = st.lists(values_of(of[0]), max_size=most, min_size=least)
        return some.map(tuple) if kind is tuple else some
    if kind is Mapping:
        return st.dictionaries(values_of(of[0]), values_of(of[1]), max_size=most)
    return PLAIN[hint] if hint in PLAIN else made(hint)


PLAIN = {
    NoneType: st.none(),
    bool: st.booleans(),
    int: st.integers(),
    float: st.floats(allow_nan=False),
    str: st.text(max_size=5) | st.sampled_from(SightKind),
    Event: st.deferred(lambda: st.one_of(*map(made, Event.kinds.values()))),
    Placement: st.just(place("mixed", 5, 2)),
}


@cache
def made(kind: type) -> st.SearchStrategy[Any]:
    """Whatever value of this class there may be."""
    hints = get_type_hints(kind, include_extras=True)
    least = 2 if issubclass(kind, Event) else 0  # the columns of one event are equally long
    return st.builds(
        kind, **{one.name: values_of(hints[one.name], 2, least) for one in fields(kind)}
    )


@pytest.mark.parametrize("kind", [k for k in VALUES if k is not Placement], ids=tag_of)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_it_comes_out_as_it_went_in(kind: type, data: st.DataObject) -> None:
    value = data.draw(made(kind))
    text = json.dumps(encode(value), allow_nan=False)
    again = decode(json.loads(text), SPEC)
    assert type(again) is kind
    assert encode(again) == json.loads(text)
    if "proof" not in text:  # what proves a report is left out
        assert again == value


def test_every_event_and_effect_can_be_written() -> None:
    for union in (AgentEvent, WorkerEffect, RootEffect, RootEvent):
        assert set(get_args(union)) <= set(VALUES)
    assert set(Event.kinds.values()) <= set(VALUES)
    assert len({tag_of(kind) for kind in (*VALUES, *MACHINES)}) == len(VALUES) + len(MACHINES)


@pytest.mark.parametrize(
    "value",
    [
        (1, "two", None, True, 2.5),
        [1, (2, [3])],
        {"a": 1, "b": (1,)},
        {1: (1, 2), 2: ()},
        {("a", "b"): 1.0},
        {"@": 1},
        {3, 1, 2},
        frozenset({"b", "a"}),
        -math.inf,
        place("mixed", 5, 2),
        SPEC,
    ],
)
def test_plain_values_keep_their_types(value: object) -> None:
    again = decode(json.loads(json.dumps(encode(value))), SPEC)
    assert (again, type(again)) == (value, type(value))


def test_an_enum_is_its_text() -> None:
    class Kind(StrEnum):
        ONE = "one"

    assert encode(Kind.ONE) == "one"
    assert type(encode(Kind.ONE)) is str


def test_what_proves_a_report_is_not_written() -> None:
    report = AgentReport("a", "a1", False, "host:1", proof="0123abcd")
    assert "0123abcd" not in json.dumps(encode(report))


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"@": "events.Nonsense"}, "'events.Nonsense' is nothing that this version"),
        ({"@": "events.PersistChanged"}, "events.PersistChanged.iteration: missing"),
        ({"@": "events.PersistChanged", "iteration": "1"}, "PersistChanged.iteration: '1' is no"),
        ({"@": "events.PersistChanged", "iteration": True}, "PersistChanged.iteration: True is no"),
        ({"@": "events.Tick", "why": 1}, "events.Tick.why: this version of Castor has no such"),
        ({"@": "events.PlanChanged", "plan": 1, "revision": 1}, "PlanChanged.plan: 1 is no"),
        ({"@": "set"}, "a damaged set"),
        ({"@": "dict", "of": 3}, "a damaged dict"),
        ({"@": "float", "of": "much"}, "a damaged float"),
    ],
)
def test_what_is_none_of_ours_is_refused_by_name(tree: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        decode(tree, SPEC)


def test_a_class_that_no_journal_knows_is_refused() -> None:
    with pytest.raises(TypeError, match="no journal knows a"):
        encode(object())


def test_the_fields_of_an_event_are_named() -> None:
    event = TrainerEnded(2, 1, -9, "killed")
    assert encode(event) == {
        "@": "events.TrainerEnded",
        "generation": 2,
        "rank": 1,
        "code": -9,
        "reason": "killed",
        "lost_peer": False,
        "left_early": False,
    }
    assert PlanChanged in VALUES
