"""What pydantic finds wrong, told to a person: the place, the dotted key, what was expected."""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from castor_configs.document import Document
from castor_configs.errors import InputError
from castor_configs.nearest import nearest_name
from castor_configs.toml_lines import KeyPath

_MISSING = object()

_EXPECTED_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "decimal": "a number",
    "bool": "true or false",
    "string": "a text in quotes",
    "path": "a path in quotes",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "frozen_set": "a list",
    "dict": "a table",
    "mapping": "a table",
    "model": "a table",
    "date": "a date such as 2024-05-31",
    "datetime": "a date and time such as 2024-05-31T12:00:00",
}
_KIND_NAMES = {"dict": "a table", "list": "a list", "tuple": "a list", "NoneType": "nothing"}
_LIMITS = {
    "greater_than": ("over", "gt"),
    "greater_than_equal": ("of at least", "ge"),
    "less_than": ("under", "lt"),
    "less_than_equal": ("of at most", "le"),
}


def validation_faults(
    error: ValidationError, document: Document, model_class: type[BaseModel], *, file: str | Path
) -> list[InputError]:
    """Return one InputError for each fault in `error`, in the order of the file's lines.

    A union reports a fault for each of its alternatives: those which only say that the value is no
    such alternative are left out when another alternative has something more exact to say.
    """
    found: list[tuple[KeyPath, bool, ErrorDetails]] = []
    for details in error.errors(include_url=False):
        path, exact = _data_path(document.data, details)
        found.append((path, exact, details))
    told: list[InputError] = []
    for path, exact, details in found:
        deeper = any(other[: len(path)] == path and len(other) > len(path) for other, _, _ in found)
        if not exact and deeper:
            continue
        fault = _fault(path, details, document, model_class, file)
        if str(fault) not in map(str, told):
            told.append(fault)
    return sorted(told, key=lambda fault: (fault.file or "", fault.line or 0))


def joined(faults: list[InputError]) -> InputError:
    """Return the one error that tells all of `faults`, one a line."""
    if len(faults) == 1:
        return faults[0]
    lines = "".join(f"\n  {fault}" for fault in faults)
    return InputError(f"{len(faults)} faults:{lines}")


def _fault(
    path: KeyPath,
    details: ErrorDetails,
    document: Document,
    model_class: type[BaseModel],
    file: str | Path,
) -> InputError:
    place = document.place_of(path)
    return InputError(
        _message(path, details, document.data, model_class),
        file=place.file if place else file,
        line=place.line if place else None,
        key=document.dotted(path) or None,
    )


def _message(
    path: KeyPath,
    details: ErrorDetails,
    data: Mapping[str, object],
    model_class: type[BaseModel],
) -> str:
    kind = details["type"]
    if kind == "extra_forbidden":
        names = [name for name, _ in _fields(model_class, data, path[:-1])]
        return _unknown_key(str(path[-1]), names)
    if kind in ("missing", "union_tag_not_found"):
        return _missing_key(str(path[-1]), _fields(model_class, data, path[:-1]))
    return _refused_value(kind, details, _value_at(data, path))


def _refused_value(kind: str, details: ErrorDetails, value: object) -> str:
    context = details.get("ctx", {})
    if kind in ("value_error", "assertion_error"):
        return str(context["error"])
    if kind in ("literal_error", "enum", "union_tag_invalid"):
        return _not_a_choice(context, value)
    if kind in _LIMITS:
        word, limit = _LIMITS[kind]
        return f"expected a value {word} {context[limit]:g}, not {_shown(value)}"
    if kind in ("string_too_short", "too_short") and context.get("min_length") == 1:
        return "must not be empty"
    if expected := _EXPECTED_TYPES.get(re.sub(r"_(type|parsing|from_float)$", "", kind)):
        return f"expected {expected}, not {_shown(value)}"
    return details["msg"][:1].lower() + details["msg"][1:]


def _unknown_key(key: str, names: list[str]) -> str:
    near = nearest_name(key, names)
    if near:
        return f"unknown key `{key}`; did you mean `{near}`?"
    known = f"; known here: {', '.join(sorted(names))}" if names else ""
    return f"unknown key `{key}`{known}"


def _missing_key(key: str, fields: Iterable[tuple[str, FieldInfo]]) -> str:
    descriptions = [info.description for name, info in fields if name == key and info.description]
    if not descriptions:
        return "required key is missing"
    text = " ".join(descriptions[0].split())
    first = text.split(". ")[0].rstrip(".")
    return f"required key is missing: {first[:1].lower()}{first[1:]}"


def _not_a_choice(context: Mapping[str, object], value: object) -> str:
    choices = str(context.get("expected", context.get("expected_tags", "")))
    written = str(context.get("tag", value))
    names = [name.strip().strip("'\"") for name in choices.replace(" or ", ", ").split(",")]
    near = nearest_name(written, names)
    hint = f"; did you mean `{near}`?" if near else ""
    shown = _shown(context.get("tag", value))
    return f"expected one of {', '.join(names)}, not {shown}{hint}"


def _data_path(data: object, details: ErrorDetails) -> tuple[KeyPath, bool]:
    """Drop what pydantic adds to a location: the tags and labels of unions, which are no keys.

    Returns:
        The path in the data, and whether nothing was dropped from its end.
    """
    path: KeyPath = ()
    location = details["loc"]
    exact = True
    for position, step in enumerate(location):
        inside = (isinstance(data, dict) and step in data) or (
            isinstance(data, list) and isinstance(step, int) and step < len(data)
        )
        if inside:
            data = data[step]  # type: ignore[index]  # `inside` has checked the kind of both
        exact = inside
        if inside or (position == len(location) - 1 and details["type"] == "missing"):
            path, exact = (*path, step), True
    if details["type"] in ("union_tag_invalid", "union_tag_not_found"):
        discriminator = str(details.get("ctx", {}).get("discriminator", "")).strip("'")
        if discriminator:
            path = (*path, discriminator)
    return path, exact


def _value_at(data: object, path: KeyPath) -> object:
    for step in path:
        if isinstance(data, dict):
            data = data.get(step, _MISSING)
        elif isinstance(data, list) and isinstance(step, int) and step < len(data):
            data = data[step]
        else:
            return _MISSING
    return data


def _shown(value: object) -> str:
    if value is _MISSING:
        return "nothing"
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 80 else f'"{value[:77]}..."'
    return _KIND_NAMES.get(type(value).__name__, str(value).lower())


def _fields(
    model_class: type[BaseModel], data: object, path: KeyPath
) -> list[tuple[str, FieldInfo]]:
    """Return the keys that may stand at `path`, of every model which the data there could be."""
    models = [model_class]
    for step in path:
        annotations = [
            field.annotation for model in models for name, field in _keys(model) if name == step
        ]
        data = _value_at(data, (step,))
        models = [
            model
            for annotation in annotations or models
            for model in _models_in(annotation)
            if _may_be(model, data)
        ]
    return [item for model in models for item in _keys(model)]


def _keys(model: type[BaseModel]) -> list[tuple[str, FieldInfo]]:
    return [(field.alias or name, field) for name, field in model.model_fields.items()]


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    """Yield the models in an annotation, through unions, lists, tables and `Annotated`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _models_in(get_args(annotation)[0])
    elif origin in (Union, types.UnionType, list, tuple, dict, set, frozenset) or origin in (
        Mapping,
    ):
        for argument in get_args(annotation):
            yield from _models_in(argument)


def _may_be(model: type[BaseModel], data: object) -> bool:
    """Whether `data` contradicts none of the model's literal fields, such as a union's tag."""
    if not isinstance(data, dict):
        return True
    for name, field in _keys(model):
        literal = get_origin(field.annotation) is Literal
        if literal and name in data and data[name] not in get_args(field.annotation):
            return False
    return True
