"""How events, effects and the state of the agents' machines look in JSON, exactly and both ways.

A value says of which class it is by the last part of its module's name and its own name: several
modules have a `StoreLost`. Every class that an event, an effect or a root's office can hold is
found by its annotations, so that a new one needs no line here; the machines' own are named.

The job is not written again: `{"@": "spec"}` stands for it. Neither its arguments nor its mark of
credentials, nor what proves a report, are ever written: no decision goes by them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import singledispatch
from typing import Any, Final, TypeAlias, get_args

from castor_policy.agents import events
from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.documents import fits, hints_of
from castor_policy.agents.effects import RootEffect, WorkerEffect
from castor_policy.agents.filling import Filling
from castor_policy.agents.gathering import Awaited
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.leaving import Leaving
from castor_policy.agents.neighbours import Neighbours
from castor_policy.agents.office import Tenure
from castor_policy.agents.parts import PartLoading
from castor_policy.agents.patience import Patience
from castor_policy.agents.persist_rounds import PersistRounds
from castor_policy.agents.roll_call import RollCall
from castor_policy.agents.root import Root
from castor_policy.agents.store_contact import StoreContact
from castor_policy.agents.wishes import Wishes
from castor_policy.agents.worker import Worker
from castor_policy.placement import Placement
from castor_records.events.event import Event
from castor_records.events.line import KINDS

Json: TypeAlias = Any

TAG: Final = "@"
"""The key that says of which class a value is."""


def tag_of(kind: type) -> str:
    """Return what stands for a class in a journal."""
    return f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"


def reached(hints: Iterable[Any]) -> list[type]:
    """Return the dataclasses that values of these types can be, or can hold."""
    found: dict[type, None] = {}
    left = list(hints)
    while left:
        hint = left.pop()
        if hint is Event:
            left += [kind for _, kinds in KINDS for kind in kinds]
        elif not isinstance(hint, type) or get_args(hint):
            left += get_args(hint)
        elif is_dataclass(hint) and hint not in found:
            found[hint] = None
            left += hints_of(hint).values()
    return list(found)


VALUES: Final = reached((events.AgentEvent, WorkerEffect, RootEffect, Tenure, Placement, Awaited))
"""Every class that a line of a journal can hold, but for the machines' states."""

MACHINES: Final = (
    *(Worker, StoreContact, PartLoading, Leaving, Neighbours),
    *(Root, Filling, Patience, PersistRounds, Wishes),
)
"""The classes that the machines' states are made of; a root's counts are made anew from them."""

_BY_TAG: Final = {tag_of(kind): kind for kind in (*VALUES, *MACHINES)}
_TAGS: Final = {kind: tag for tag, kind in _BY_TAG.items()}


def _names(kind: type) -> tuple[str, ...]:
    if kind not in _NAMES:
        _NAMES[kind] = tuple(one.name for one in fields(kind) if one.init)
    return _NAMES[kind]


_NAMES: Final[dict[type, tuple[str, ...]]] = {}


@singledispatch
def encode(value: Any) -> Json:
    """Return a value as JSON has it: objects, lists, texts, numbers, true, false and null.

    Raises:
        TypeError: it holds something of a class that no journal knows.
    """
    kind = type(value)
    if kind in MACHINES:
        return {TAG: _TAGS[kind]} | {
            name: encode(one) for name, one in vars(value).items() if not isinstance(one, RollCall)
        }
    if kind not in _TAGS:
        raise TypeError(f"no journal knows a {kind.__module__}.{kind.__name__}")
    return {TAG: _TAGS[kind]} | {name: encode(getattr(value, name)) for name in _names(kind)}


@encode.register(bool)
@encode.register(int)
@encode.register(type(None))
def _(value: Json) -> Json:
    return value


@encode.register
def _(value: str) -> Json:
    return str(value)  # an enum's value


@encode.register
def _(value: float) -> Json:
    return value if math.isfinite(value) else {TAG: "float", "of": repr(value)}


@encode.register
def _(value: tuple) -> Json:  # type: ignore[type-arg]  # of anything
    return [encode(one) for one in value]


@encode.register
def _(value: list) -> Json:  # type: ignore[type-arg]  # of anything
    return {TAG: "list", "of": [encode(one) for one in value]}


@encode.register(set)
@encode.register(frozenset)
def _(value: Collection[Any]) -> Json:
    # In one order, whatever the process hashes to.
    return {TAG: type(value).__name__, "of": sorted(map(encode, value), key=json.dumps)}


@encode.register
def _(value: Mapping) -> Json:  # type: ignore[type-arg]  # of anything
    if all(isinstance(key, str) and key != TAG for key in value):
        return {str(key): encode(one) for key, one in value.items()}
    return {TAG: "dict", "of": [[encode(key), encode(one)] for key, one in value.items()]}


@encode.register
def _(_: JobSpec) -> Json:
    return {TAG: "spec"}


@encode.register
def _(value: AgentReport) -> Json:
    return {TAG: _TAGS[AgentReport]} | {
        name: "" if name == "proof" else encode(getattr(value, name))
        for name in _names(AgentReport)
    }


def decode(tree: Json, spec: JobSpec) -> Any:
    """Return the value that `encode` made this of, in the job `spec`.

    Raises:
        ValueError: it is none, or one of another version of Castor.
    """
    if isinstance(tree, list):
        return tuple(decode(one, spec) for one in tree)
    if not isinstance(tree, dict):
        return tree
    found = {name: decode(one, spec) for name, one in tree.items() if name != TAG}
    tag = tree.get(TAG)
    if tag is None:
        return found
    if tag in _PLAIN:
        try:
            return _PLAIN[tag](found["of"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"a damaged {tag} ({error!r})") from None
    return spec if tag == "spec" else _made(tag, found)


_PLAIN: Final[Mapping[str, Callable[[Any], object]]] = {
    "float": float,
    "list": list,
    "set": set,
    "frozenset": frozenset,
    "dict": dict,
}


def _made(tag: str, found: Mapping[str, Any]) -> object:
    kind = _BY_TAG.get(tag)
    if kind is None:
        raise ValueError(f"{tag!r} is nothing that this version of Castor knows")
    if kind in MACHINES:
        machine: object = object.__new__(kind)
        vars(machine).update(found)
        if isinstance(machine, Root):
            machine.count_anew()
        return machine
    hints = hints_of(kind)
    named = _names(kind)
    if strange := [name for name in found if name not in named]:
        raise ValueError(f"{tag}.{strange[0]}: this version of Castor has no such field")
    for name, value in found.items():
        if not fits(value, hints[name]):
            raise ValueError(f"{tag}.{name}: {value!r} is no {hints[name]}")
    try:
        return kind(**found)
    except TypeError:
        missing = next((name for name in named if name not in found), "a field")
        raise ValueError(f"{tag}.{missing}: missing") from None
